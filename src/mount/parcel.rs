//! Messages between a keeper and its workers: one packet of a socket pair each, JSON with file
//! descriptors beside it.
//!
//! A keeper outlives the binary that it was started from: what is said here may be added to, and
//! never changed. What workers hand over to each other is no business of the keeper.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest message in bytes: a request or a record holds a few paths, and Linux takes packets of up
/// to 208 KiB unless told otherwise.
const MESSAGE_BYTES_MAX: usize = 128 << 10;

/// Most descriptors of a message: the device, the lock of an upper directory, and room to spare. The
/// kernel takes 253 (`SCM_MAX_FD`).
const DESCRIPTORS_MAX: usize = 32;

/// What a worker begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Start {
    /// The mount request, as the command sent it.
    pub(super) request: Value,
    /// What the worker before it handed over, with the descriptors of that message; `None` for the
    /// first one.
    pub(super) handed: Option<Value>,
    /// Whether the keeper does what a worker in a sandbox cannot; those of early versions do not.
    #[serde(default)]
    pub(super) does: bool,
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// The mount is served. This, and the descriptors of the message, is what another worker needs
    /// to go on; it takes the place of what was said before.
    Serving(Value),
    /// Everything is ready to take over from the worker before.
    Prepared,
    /// Another worker, of this program, should take over.
    Replace(std::path::PathBuf),
    /// Do something that this worker cannot. The message brings the end of a pipe: what is written to
    /// it is the answer, that it is closed the end of it.
    Do(Task),
}

/// What a keeper does for a worker that is in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Task {
    /// Look up the credentials of a reference.
    Credentials(String),
    /// Have another worker take over, of the same program.
    Renew,
    /// End the mount; who uses it keeps it to the end.
    Unmount,
    /// End it at once, and the connection of this `MAJOR:MINOR`.
    Abort(Option<String>),
}

/// What a worker hears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Told {
    /// The worker before is gone: serve.
    Alone,
    /// No other worker took over: go on.
    NotReplaced(String),
}

/// Two ends.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (unix, packets) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socketpair(
        unix,
        packets,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one message.
pub(super) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_BYTES_MAX || descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::other("the message is too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        beside.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL;
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &[IoSlice::new(&bytes)], &mut beside, flags)
    })?;
    Ok(())
}

/// Waits for one message; `None` when the other end is closed. One that cannot be understood is an error
/// of kind `InvalidData`, after which others may come.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut beside,
            flags,
        )
    });
    let length = match received {
        Ok(message) => message.bytes,
        // The other end has died with something of ours unread.
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(e) => return Err(e.into()),
    };
    if length == 0 {
        return Ok(None);
    }
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    // One that is not known, of a later version: whoever hears it may go on without.
    let message = serde_json::from_slice(&bytes[..length]);
    let message = message.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok(Some((message, descriptors)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn messages_carry_descriptors_and_end_with_the_other_end() {
        let (one, two) = pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"kept").unwrap();
        let value = Said::Serving(serde_json::json!({"x": "y".repeat(100_000)}));
        send(&one, &value, &[file.as_fd(), file.as_fd()]).unwrap();
        send(&one, &Said::Prepared, &[]).unwrap();
        let (said, mut held) = receive::<Said>(&two).unwrap().unwrap();
        assert_eq!((said, held.len()), (value, 2));
        let mut passed = std::fs::File::from(held.remove(0));
        passed.rewind().unwrap();
        let mut text = String::new();
        passed.read_to_string(&mut text).unwrap();
        assert_eq!(text, "kept");
        assert_eq!(receive::<Said>(&two).unwrap().unwrap().0, Said::Prepared);
        assert!(send(&one, &"x".repeat(200_000), &[]).is_err());
        send(&one, &serde_json::json!({"later": 1}), &[file.as_fd()]).unwrap();
        send(&one, &Said::Prepared, &[]).unwrap();
        let unknown = receive::<Said>(&two).unwrap_err();
        assert_eq!(unknown.kind(), io::ErrorKind::InvalidData);
        assert_eq!(receive::<Said>(&two).unwrap().unwrap().0, Said::Prepared);
        send(&two, &Told::Alone, &[]).unwrap();
        drop(one);
        assert!(receive::<Said>(&two).unwrap().is_none());
        assert!(send(&two, &Told::Alone, &[]).is_err());
    }
}

//! The console socket: how a runtime hands over the terminal that it made for a process (runc's
//! `docs/terminals.md`; all three runtimes do the same).

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// How long a runtime may take to send the terminal after it said that the process is there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks.
const GLANCE: Duration = Duration::from_millis(2);

/// Longest name that comes along with the descriptor.
const NAME_BYTES_MAX: usize = 4096;

/// A socket that waits for one terminal; the file is removed when this is dropped.
#[derive(Debug)]
pub struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Listens on `path`.
    pub fn listen(path: &Path) -> io::Result<Console> {
        let _left_over = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Console {
            listener,
            path: path.to_owned(),
        })
    }

    /// What the runtime has to be told.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The master side of the terminal, which the runtime has sent before it returned.
    pub fn receive(&self) -> io::Result<OwnedFd> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(GLANCE);
                }
                Err(e) => return Err(e),
            }
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        descriptor(stream)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

fn descriptor(mut stream: UnixStream) -> io::Result<OwnedFd> {
    let mut name = [0; NAME_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut name)];
    recvmsg(&stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(descriptor) = descriptors.next()
        {
            // The sender waits until its message was taken.
            let _rest = stream.read(&mut name);
            return Ok(descriptor);
        }
    }
    Err(io::Error::other("the runtime sent no terminal"))
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    #[test]
    fn a_descriptor_comes_through() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::listen(&dir.path().join("s")).unwrap();
        let stream = UnixStream::connect(console.path()).unwrap();
        let sent = std::fs::File::open("/dev/null").unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let list = [sent.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&list)));
        let name = [IoSlice::new(b"pty")];
        sendmsg(&stream, &name, &mut control, SendFlags::empty()).unwrap();
        drop(stream);
        let received = console.receive().unwrap();
        let (a, b) = (
            rustix::fs::fstat(&sent).unwrap(),
            rustix::fs::fstat(&received).unwrap(),
        );
        assert_eq!((a.st_rdev, a.st_ino), (b.st_rdev, b.st_ino));
        let path = console.path().to_owned();
        drop(console);
        assert!(!path.exists());
    }
}

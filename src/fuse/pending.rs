//! A read on its way: answered at once, or after what it lacks has been fetched.

use std::cell::RefCell;
use std::sync::Arc;

use fuser::{Errno, ReplyData};

use crate::content::Content;
use crate::fs::{Absent, Error, ImageFs, LayerFiles, Outcome, ReadBuffer};
use crate::fuse::push::{Pusher, Waiting};

/// How often one read may find bytes absent again (evicted between fetch and read) before EIO.
const FETCHES_MAX: u32 = 16;

thread_local! {
    static BUFFER: RefCell<ReadBuffer> = RefCell::default();
}

/// What has files that can be read.
pub(super) trait Readable: Send + Sync + 'static {
    /// Reads file `file` without waiting.
    fn read(
        &self,
        file: u64,
        offset: u64,
        size: u32,
        buffer: &mut ReadBuffer,
    ) -> Result<Outcome, Error>;

    /// Where absent bytes come from.
    fn content(&self) -> &Arc<Content>;
}

impl Readable for ImageFs {
    fn read(
        &self,
        file: u64,
        offset: u64,
        size: u32,
        buffer: &mut ReadBuffer,
    ) -> Result<Outcome, Error> {
        ImageFs::read(self, file, offset, size, buffer)
    }

    fn content(&self) -> &Arc<Content> {
        ImageFs::content(self)
    }
}

impl Readable for LayerFiles {
    fn read(
        &self,
        file: u64,
        offset: u64,
        size: u32,
        buffer: &mut ReadBuffer,
    ) -> Result<Outcome, Error> {
        let n = u32::try_from(file).map_err(|_| Error::NotFound)?;
        LayerFiles::read(self, n, offset, size, buffer)
    }

    fn content(&self) -> &Arc<Content> {
        self.image().content()
    }
}

/// A read on its way.
pub(super) struct PendingRead<R> {
    fs: Arc<R>,
    file: u64,
    offset: u64,
    size: u32,
    fetches: u32,
    /// Present while it waits for the network.
    waiting: Option<Waiting>,
}

impl<R: Readable> PendingRead<R> {
    pub(super) fn new(fs: Arc<R>, file: u64, offset: u64, size: u32) -> PendingRead<R> {
        PendingRead {
            fs,
            file,
            offset,
            size,
            fetches: 0,
            waiting: None,
        }
    }

    /// Answers READ, of inode `ino`, now or when the bytes have come; `pusher` hears that it waits.
    pub(super) fn begin(mut self, ino: u64, pusher: &Pusher, reply: ReplyData) {
        if let Some((absent, reply)) = self.try_answer(reply) {
            self.waiting = Some(pusher.waiting(ino));
            self.fetch(absent, reply);
        }
    }

    fn answer(mut self, reply: ReplyData) {
        if let Some((absent, reply)) = self.try_answer(reply) {
            self.fetch(absent, reply);
        }
    }

    /// Gives the reply back, and what is absent.
    fn try_answer(&mut self, reply: ReplyData) -> Option<(Absent, ReplyData)> {
        BUFFER.with_borrow_mut(|buffer| {
            let outcome = self.fs.read(self.file, self.offset, self.size, buffer);
            match outcome {
                Ok(Outcome::Read) => {
                    reply.data(buffer.bytes());
                    None
                }
                Ok(Outcome::Absent(absent)) if self.fetches < FETCHES_MAX => Some((absent, reply)),
                Ok(Outcome::Absent(_)) => {
                    reply.error(Errno::EIO);
                    None
                }
                Err(e) => {
                    reply.error(Errno::from_i32(e.errno().raw_os_error()));
                    None
                }
            }
        })
    }

    fn fetch(mut self, absent: Absent, reply: ReplyData) {
        self.fetches += 1;
        let content = self.fs.content().clone();
        content.fetch(
            absent.layer,
            absent.range,
            Box::new(move |fetched| match fetched {
                Ok(()) => self.answer(reply),
                Err(e) => {
                    tracing::error!(error = %e, layer = absent.layer, range = %absent.range,
                        "a read failed");
                    reply.error(Errno::EIO);
                }
            }),
        );
    }
}

//! FUSE: translates kernel requests to [`ImageFs`](crate::fs::ImageFs) calls and back, or, where EROFS
//! knows the tree, to [`LayerFiles`](crate::fs::LayerFiles). Decides nothing.
//!
//! The tree is immutable, so the kernel is told to keep everything: entries, attributes and
//! negative entries for ever, directory listings and symbolic links cached. OPEN and OPENDIR are
//! answered ENOSYS once (`FUSE_NO_OPEN_SUPPORT`, `FUSE_NO_OPENDIR_SUPPORT`), after which the kernel
//! opens without asking and keeps pages and listings over a reopen. A warm `find`, `stat` or
//! open+read+close therefore sends no request at all. What is left of a warm stat's 1.4 times and an
//! open's 1.7 times the time on ext4 is the kernel's own: `perf` has most of it in `fuse_permission` and
//! `fuse_dentry_revalidate`, once for each component of the path, and in the `fuse_file` of an open.
//! Tried: without `default_permissions` a stat takes 1.3 times and an open 1.6 times as long, but then
//! nobody checks permissions; an OPEN that is answered with `FOPEN_NOFLUSH` spares the flush and costs a
//! round trip: 18 us instead of 4. The EROFS engine has neither.
//!
//! A long file that comes from the disk is read at about three quarters of ext4's speed: the two copies
//! are 40 % of both cores' time then, the sums 3 %. With the kernel's 128 KiB of read-ahead it was
//! half; now as much is read ahead as on the disk itself. Tried besides, and no faster: three and four
//! threads; O_DIRECT, which spares a copy and waits for the disk instead; advising the kernel of what
//! comes next.
//!
//! What the page cache has is read at half of ext4's speed, by the FUSE file systems beside it as well: FUSE has
//! pages of 4 KiB, and how they lie in memory decides (2 in 7 where they are scattered, 9 in 10 where they lie
//! in whole blocks; `benches/warm` prints how long the stretches are).
//!
//! A first `find` takes 1.5 times ext4's, because READDIRPLUS makes an inode for each name, and ext4 reads names only.
//! Tried: without READDIRPLUS it is a fifth faster, and one that looks at sizes 2.2 times slower; with
//! `FUSE_READDIRPLUS_AUTO` nothing changes.
//!
//! A READ of present bytes is two pread(2), of the pages and of their sums, into a buffer of the
//! thread, a CRC32C over it, and a writev(2) from it: one copy on each side, no allocation, no lock. Where
//! the time goes: the wake-ups on both sides take about 36 us a request on a machine of two idle
//! virtual cores, all that this program does about 7 for 16 KiB. So what helps is not to be
//! asked (`push`).
//!
//! A READ whose bytes are absent is handed, with its owned reply, to the content's fetcher; the
//! thread takes the next request at once. So a thousand readers of absent bytes wait in a list,
//! not in these threads, and `max_background` lets the kernel hold that many.
//!
//! Deadlock to keep away from: the process must not touch its own mount from a session thread.

mod adapter;
mod init;
mod layers;
mod pending;
pub mod probe;
mod push;
pub mod session;

pub use session::{Detached, Eraser, MountFlags, Session, Unmounter, shown_source};

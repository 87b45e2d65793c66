//! What can go wrong in the file system, and the one place that knows which errno it is.

/// An error of a file system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such name in the directory.
    #[error("no such file or directory")]
    NotFound,
    /// The inode number is not of this tree.
    #[error("inode {0} does not exist")]
    StaleInode(u64),
    /// A directory was needed.
    #[error("not a directory")]
    NotADirectory,
    /// A regular file was needed.
    #[error("is a directory")]
    IsADirectory,
    /// A symbolic link was needed.
    #[error("not a symbolic link")]
    NotALink,
    /// A regular file was needed.
    #[error("not a regular file")]
    NotARegularFile,
    /// The extended attribute is not set.
    #[error("no such extended attribute")]
    NoXattr,
    /// The bytes could not be had, or were not what the manifest promised.
    #[error("input/output error")]
    Io,
}

impl Error {
    /// The errno that a caller of the system call sees.
    pub fn errno(self) -> rustix::io::Errno {
        use rustix::io::Errno;
        match self {
            Error::NotFound => Errno::NOENT,
            Error::StaleInode(_) => Errno::STALE,
            Error::NotADirectory => Errno::NOTDIR,
            Error::IsADirectory => Errno::ISDIR,
            Error::NotALink | Error::NotARegularFile => Errno::INVAL,
            Error::NoXattr => Errno::NODATA,
            Error::Io => Errno::IO,
        }
    }
}

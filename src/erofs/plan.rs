//! Where everything goes: every inode's number first, because directories name them, then the bytes
//! in order.

use std::io;

use crate::erofs::error::ErofsError;
use crate::erofs::inode::{self, Data, INDEX_BYTES, INODE_BYTES};
use crate::erofs::superblock::{self, Totals};
use crate::erofs::{BLOCK_BYTES, DEVICE_ALIGN_BYTES, directory, xattr};
use crate::tree::{Ino, LayerId, Node, NodeKind, Tree};

/// Unit of inode numbers in bytes.
const NID_BYTES: u64 = 32;
const BLOCK: usize = BLOCK_BYTES as usize;
/// The highest address of a device: the last block number says that there is none.
const DEVICE_BYTES_MAX: u64 = (u32::MAX as u64 - 1) * BLOCK_BYTES;
/// Bytes that are collected before they are written.
const PIECE_BYTES: usize = 256 << 10;

/// The address space of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// For people who look into the image: up to 64 bytes.
    pub tag: String,
    /// Length in bytes. [`Image::plan`] makes it longer: by what has to be composed, and to a
    /// multiple of [`DEVICE_ALIGN_BYTES`].
    pub bytes: u64,
}

impl Device {
    /// The number of a layer's device in chunk indexes; 0 is the image itself.
    pub(super) fn slot(layer: LayerId) -> u16 {
        // `Image::plan` has seen that there are not so many.
        u16::try_from(layer.0 + 1).unwrap_or(u16::MAX)
    }
}

/// A file that has to be put together behind the end of its layer's tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Composed {
    /// Position of the layer.
    pub layer: u32,
    /// Where the file begins in the layer's device; a multiple of [`DEVICE_ALIGN_BYTES`].
    pub start: u64,
    /// Which file.
    pub ino: Ino,
    /// Its length.
    pub bytes: u64,
}

/// One inode as it will be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body {
    /// `i_size`.
    pub(super) size: u64,
    pub(super) xattr_bytes: usize,
    pub(super) data: Data,
}

/// A tree on its way into an image.
#[derive(Debug)]
pub struct Image<'t> {
    tree: &'t Tree,
    devices: Vec<Device>,
    /// Number of each inode, in the order of the tree.
    nids: Vec<u32>,
    bodies: Vec<Body>,
    composed: Vec<Composed>,
    /// Where the inodes end and the blocks begin.
    blocks_from: u64,
    bytes: u64,
}

impl<'t> Image<'t> {
    /// Finds a place for everything. `layers` are the devices of the tree's layers, base first.
    pub fn plan(tree: &'t Tree, layers: Vec<Device>) -> Result<Image<'t>, ErofsError> {
        let head = superblock::OFFSET + superblock::BYTES + layers.len() * superblock::SLOT_BYTES;
        if head as u64 / NID_BYTES > u64::from(u16::MAX) {
            return Err(ErofsError::Layers(layers.len()));
        }
        let mut image = Image {
            tree,
            devices: layers,
            nids: Vec::with_capacity(tree.len()),
            bodies: Vec::with_capacity(tree.len()),
            composed: Vec::new(),
            blocks_from: 0,
            bytes: 0,
        };
        for (layer, device) in image.devices.iter_mut().enumerate() {
            device.bytes = device.bytes.next_multiple_of(DEVICE_ALIGN_BYTES);
            check_device(layer, device.bytes)?;
        }
        image.place_inodes(head as u64)?;
        image.place_blocks()?;
        image.composed.sort_by_key(|c| (c.layer, c.start));
        Ok(image)
    }

    /// Length of the image in bytes: whole pages.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The devices, base first, as long as they have to be.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The files that have to be put together, by layer and start.
    pub fn composed(&self) -> &[Composed] {
        &self.composed
    }

    /// The number of an inode in the image, which is what stat(2) gives on a mount of it.
    pub fn nid(&self, ino: Ino) -> u64 {
        let nid = self.nids.get(ino.get() as usize - 1);
        nid.map_or(0, |nid| u64::from(*nid))
    }

    /// Writes the image.
    pub fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let totals = Totals {
            root_nid: self.nid(Ino::ROOT) as u16,
            inodes: self.tree.len() as u64,
            blocks: (self.bytes / BLOCK_BYTES) as u32,
        };
        let mut piece = superblock::head(totals, &self.devices);
        // Offset in the image of the first byte of `piece`.
        let mut written = 0;
        let mut signed = false;
        for (ino, node, body) in self.inodes() {
            let at = (self.nid(ino) * NID_BYTES - written) as usize;
            piece.resize(at, 0);
            inode::write(self.tree, (ino, &node), body, &mut piece);
            written += flush(&mut piece, PIECE_BYTES, &mut signed, out)?;
        }
        piece.resize((self.blocks_from - written) as usize, 0);
        for (ino, _, body) in self.inodes() {
            let Data::Blocks { .. } = body.data else {
                continue;
            };
            match self.tree.symlink_target(ino) {
                Some(target) => {
                    piece.extend_from_slice(target);
                    piece.resize(piece.len().next_multiple_of(BLOCK), 0);
                }
                None => directory::write(self.tree, ino, |ino| self.nid(ino), &mut piece),
            }
            written += flush(&mut piece, PIECE_BYTES, &mut signed, out)?;
        }
        piece.resize((self.bytes - written) as usize, 0);
        flush(&mut piece, 0, &mut signed, out)?;
        Ok(())
    }

    fn inodes(&self) -> impl Iterator<Item = (Ino, Node, &Body)> {
        inos(self.tree)
            .zip(&self.bodies)
            .filter_map(|(ino, body)| Some((ino, self.tree.node(ino)?, body)))
    }

    fn place_inodes(&mut self, head: u64) -> Result<(), ErofsError> {
        let mut at = head;
        for ino in inos(self.tree) {
            let Some(node) = self.tree.node(ino) else {
                continue;
            };
            let mut body = self.body(ino, &node)?;
            let mut bytes = (INODE_BYTES + body.xattr_bytes) as u64;
            at = at.next_multiple_of(NID_BYTES);
            match body.data {
                Data::Inline => {
                    bytes += body.size;
                    if bytes > BLOCK_BYTES {
                        body.data = Data::Blocks { first: 0 };
                        bytes -= body.size;
                    } else if at % BLOCK_BYTES + bytes > BLOCK_BYTES {
                        // What stands behind an inode ends in the inode's block.
                        at = at.next_multiple_of(BLOCK_BYTES);
                    }
                }
                Data::Chunks { bits } | Data::Composed { bits, .. } => {
                    bytes = bytes.next_multiple_of(INDEX_BYTES as u64);
                    bytes += inode::chunks(body.size, bits) * INDEX_BYTES as u64;
                }
                Data::None | Data::Blocks { .. } | Data::Special => {}
            }
            let nid = u32::try_from(at / NID_BYTES).map_err(|_| ErofsError::TooLarge)?;
            self.nids.push(nid);
            self.bodies.push(body);
            at += bytes;
        }
        self.blocks_from = at.next_multiple_of(BLOCK_BYTES);
        Ok(())
    }

    fn place_blocks(&mut self) -> Result<(), ErofsError> {
        let mut at = self.blocks_from;
        for body in &mut self.bodies {
            if let Data::Blocks { first } = &mut body.data {
                *first = u32::try_from(at / BLOCK_BYTES).map_err(|_| ErofsError::TooLarge)?;
                at += body.size.next_multiple_of(BLOCK_BYTES);
            }
        }
        self.bytes = at.next_multiple_of(DEVICE_ALIGN_BYTES);
        match u32::try_from(self.bytes / BLOCK_BYTES) {
            Ok(_) => Ok(()),
            Err(_) => Err(ErofsError::TooLarge),
        }
    }

    fn body(&mut self, ino: Ino, node: &Node) -> Result<Body, ErofsError> {
        let xattr_bytes = xattr::bytes(self.tree, ino)?;
        let (size, data) = match node.kind {
            NodeKind::Directory => {
                let bytes = directory::bytes(self.tree, ino);
                (bytes, Data::Blocks { first: 0 })
            }
            NodeKind::Regular if node.size == 0 => (0, Data::None),
            NodeKind::Regular => (node.size, self.regular(ino, node.size)?),
            NodeKind::Symlink => (node.size, Data::Inline),
            NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Fifo => (0, Data::Special),
        };
        Ok(Body {
            size,
            xattr_bytes,
            data,
        })
    }

    fn regular(&mut self, ino: Ino, size: u64) -> Result<Data, ErofsError> {
        let (layer, extents) = self.tree.extents(ino);
        if let Some(bits) = inode::chunk_bits(size, extents.iter()) {
            return Ok(Data::Chunks { bits });
        }
        let at = layer.0 as usize;
        let Some(device) = self.devices.get_mut(at) else {
            return Err(ErofsError::Layers(at));
        };
        let start = device.bytes;
        device.bytes = start
            .saturating_add(size)
            .checked_next_multiple_of(DEVICE_ALIGN_BYTES)
            .unwrap_or(u64::MAX);
        check_device(at, device.bytes)?;
        self.composed.push(Composed {
            layer: layer.0,
            start,
            ino,
            bytes: size,
        });
        let bits = inode::chunk_bits(size, std::iter::empty()).ok_or(ErofsError::TooLarge)?;
        Ok(Data::Composed {
            bits,
            address: start,
        })
    }
}

/// All inode numbers of a tree.
fn inos(tree: &Tree) -> impl Iterator<Item = Ino> + use<> {
    (1..=tree.len() as u64).filter_map(Ino::from_raw)
}

fn check_device(layer: usize, bytes: u64) -> Result<(), ErofsError> {
    match bytes > DEVICE_BYTES_MAX {
        true => Err(ErofsError::LayerTooLong { layer, bytes }),
        false => Ok(()),
    }
}

/// Writes `piece` when it has `enough` bytes, and empties it: how many there were.
fn flush(
    piece: &mut Vec<u8>,
    enough: usize,
    signed: &mut bool,
    out: &mut dyn io::Write,
) -> io::Result<u64> {
    if piece.len() < enough {
        return Ok(0);
    }
    if !*signed {
        // The first piece is long enough: it has `PIECE_BYTES`, or it is the whole image.
        superblock::sign(piece);
        *signed = true;
    }
    out.write_all(piece)?;
    let written = piece.len() as u64;
    piece.clear();
    Ok(written)
}

//! Maps of sparse files: which pieces of a file stand in the data, one after the other.

use crate::layer::entry::Extent;
use crate::layer::limit::{FILE_BYTES_MAX, SPARSE_EXTENTS_MAX};
use crate::layer::tar::TarError;
use crate::layer::tar::header::Block;

/// Lays `pieces` (offset in the file and length) out over `data_len` bytes of data at `address`.
/// Pieces have to be in order, inside the file, and exactly as long as the data.
pub(crate) fn lay_out(
    pieces: &[(u64, u64)],
    real_size: u64,
    mut address: u64,
    data_len: u64,
) -> Result<Vec<Extent>, TarError> {
    if real_size > FILE_BYTES_MAX {
        return Err(TarError::FileTooLong(real_size));
    }
    let data_end = address.checked_add(data_len).ok_or(TarError::SparseMap)?;
    let (mut extents, mut end): (Vec<Extent>, u64) = (Vec::with_capacity(pieces.len()), 0);
    for &(file_offset, len) in pieces {
        let piece_end = file_offset.checked_add(len).ok_or(TarError::SparseMap)?;
        let next = address.checked_add(len).ok_or(TarError::SparseMap)?;
        if file_offset < end || piece_end > real_size || next > data_end {
            return Err(TarError::SparseMap);
        }
        if len > 0 {
            extents.push(Extent {
                file_offset,
                address,
                len,
            });
        }
        (end, address) = (piece_end, next);
    }
    if address != data_end {
        return Err(TarError::SparseMap);
    }
    Ok(extents)
}

/// Reads the map of PAX version 1.0, which stands in whole blocks before the data: a decimal count
/// and that many pairs of offset and length, a number a line.
#[derive(Debug, Default)]
pub(crate) struct DataMap {
    count: Option<usize>,
    pieces: Vec<(u64, u64)>,
    offset: Option<u64>,
    number: Option<u64>,
}

impl DataMap {
    /// Reads one block; whether the map is complete.
    pub(crate) fn push(&mut self, block: &Block) -> Result<bool, TarError> {
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let value = self.number.unwrap_or(0).checked_mul(10);
                    let value = value.and_then(|v| v.checked_add(u64::from(byte - b'0')));
                    self.number = Some(value.ok_or(TarError::SparseMap)?);
                }
                b'\n' => {
                    let number = self.number.take().ok_or(TarError::SparseMap)?;
                    self.line(number)?;
                    if self.count == Some(self.pieces.len()) {
                        return Ok(true);
                    }
                }
                _ => return Err(TarError::SparseMap),
            }
        }
        Ok(false)
    }

    fn line(&mut self, number: u64) -> Result<(), TarError> {
        if self.count.is_none() {
            let count = usize::try_from(number)
                .ok()
                .filter(|n| *n <= SPARSE_EXTENTS_MAX);
            self.count = Some(count.ok_or(TarError::SparseExtents)?);
        } else if let Some(offset) = self.offset.take() {
            self.pieces.push((offset, number));
        } else {
            self.offset = Some(number);
        }
        Ok(())
    }

    pub(crate) fn into_pieces(self) -> Vec<(u64, u64)> {
        self.pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_extents() {
        let extents = lay_out(&[(0, 3), (10, 2), (20, 0)], 20, 512, 5).unwrap();
        let extent = |file_offset, address, len| Extent {
            file_offset,
            address,
            len,
        };
        assert_eq!(extents, [extent(0, 512, 3), extent(10, 515, 2)]);
        assert_eq!(lay_out(&[], 99, 512, 0).unwrap(), []);
    }

    #[test]
    fn maps_that_lie_are_refused() {
        let max = u64::MAX;
        for (pieces, size, len) in [
            (&[(0, 5), (4, 5)][..], 20, 10), // overlap
            (&[(8, 5), (0, 5)], 20, 10),     // order
            (&[(18, 5)], 20, 5),             // beyond the end
            (&[(0, 5)], 20, 6),              // data left over
            (&[(0, 5)], 20, 4),              // data missing
            (&[(max, max)], 20, 4),
            (&[], max, 0),
        ] {
            assert!(lay_out(pieces, size, 512, len).is_err(), "{pieces:?}");
        }
        assert!(lay_out(&[(0, 5)], 20, max - 3, 5).is_err());
    }

    #[test]
    fn a_map_in_the_data_is_read() {
        let block = |text: &str| {
            let mut block = [0; 512];
            block[..text.len()].copy_from_slice(text.as_bytes());
            block
        };
        let mut map = DataMap::default();
        assert_eq!(map.push(&block("2\n0\n5\n10\n3\n")), Ok(true));
        assert_eq!(map.into_pieces(), [(0, 5), (10, 3)]);
        assert_eq!(DataMap::default().push(&block("0\n")), Ok(true));
        assert!(DataMap::default().push(&block("x\n")).is_err());
        assert!(DataMap::default().push(&block("1\n5")).is_err());
        let many = format!("{}\n", SPARSE_EXTENTS_MAX + 1);
        assert_eq!(
            DataMap::default().push(&block(&many)),
            Err(TarError::SparseExtents)
        );
        let whole = format!("1\n{}5\n7\n", "0".repeat(600));
        let (first, second) = whole.split_at(512);
        let mut map = DataMap::default();
        assert_eq!(map.push(&block(first)), Ok(false));
        assert_eq!(map.push(&block(second)), Ok(true));
        assert_eq!(map.into_pieces(), [(5, 7)]);
    }
}

//! PAX extended headers (POSIX.1-2001, `pax`, "pax Extended Header"): records of
//! `LENGTH KEY=VALUE\n`, global ones that stay and local ones for the next entry.

use crate::layer::entry::{Timestamp, Xattr};
use crate::layer::limit::{
    PAX_BYTES_MAX, SPARSE_EXTENTS_MAX, XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTRS_MAX,
};
use crate::layer::tar::TarError;

/// Prefix under which star, GNU tar and Go store extended attributes.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What PAX headers say about an entry.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<Timestamp>,
    /// Sorted by name.
    pub(crate) xattrs: Vec<Xattr>,
    pub(crate) sparse: Sparse,
}

/// The `GNU.sparse.*` keys (GNU tar manual, "PAX Format, Versions 0.0, 0.1 and 1.0").
#[derive(Debug, Clone, Default)]
pub(crate) struct Sparse {
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) real_size: Option<u64>,
    /// Whether the map stands at the start of the data (version 1.0).
    pub(crate) map_in_data: bool,
    /// The map of versions 0.0 and 0.1.
    pub(crate) pieces: Option<Vec<(u64, u64)>>,
    offset: Option<u64>,
}

impl Pax {
    /// Applies the records of a global header, which hold for all entries that follow.
    /// Sparse maps belong to one file and are passed over.
    pub(crate) fn apply_global(&mut self, records: &[u8]) -> Result<(), TarError> {
        self.apply(records)?;
        self.sparse = Sparse::default();
        Ok(())
    }

    /// Applies records; later ones win over earlier ones.
    pub(crate) fn apply(&mut self, mut records: &[u8]) -> Result<(), TarError> {
        while !records.is_empty() {
            let (record, rest) = split_record(records).ok_or(TarError::PaxRecord)?;
            let equals = record
                .iter()
                .position(|b| *b == b'=')
                .ok_or(TarError::PaxRecord)?;
            self.set(&record[..equals], &record[equals + 1..])?;
            records = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        // An empty value takes back what was said before.
        let some = !value.is_empty();
        match key {
            b"path" => self.path = some.then(|| value.to_vec()),
            b"linkpath" => self.link = some.then(|| value.to_vec()),
            b"size" => self.size = some.then(|| decimal(value, "PAX size")).transpose()?,
            b"uid" => self.uid = some.then(|| signed(value, "PAX uid")).transpose()?,
            b"gid" => self.gid = some.then(|| signed(value, "PAX gid")).transpose()?,
            b"mtime" => self.mtime = some.then(|| time(value)).transpose()?,
            _ => match key.strip_prefix(XATTR_PREFIX) {
                Some(name) => self.xattr(name, value)?,
                None => self.sparse.set(key, value)?,
            },
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), TarError> {
        if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX || name.contains(&0) {
            return Err(TarError::XattrName(name.len()));
        }
        if value.len() > XATTR_BYTES_MAX {
            return Err(TarError::XattrValue(value.len()));
        }
        let xattr = Xattr {
            name: name.into(),
            value: value.into(),
        };
        match self.xattrs.binary_search_by(|x| x.name.as_ref().cmp(name)) {
            Ok(at) => self.xattrs[at] = xattr,
            Err(at) => self.xattrs.insert(at, xattr),
        }
        let bytes: usize = self
            .xattrs
            .iter()
            .map(|x| x.name.len() + x.value.len())
            .sum();
        if self.xattrs.len() > XATTRS_MAX || bytes as u64 > PAX_BYTES_MAX {
            return Err(TarError::Xattrs);
        }
        Ok(())
    }
}

impl Sparse {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        match key {
            b"GNU.sparse.name" => self.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.real_size = Some(decimal(value, "GNU.sparse.size")?);
            }
            b"GNU.sparse.major" => self.map_in_data = value == b"1",
            b"GNU.sparse.map" => {
                let numbers = value.split(|b| *b == b',').filter(|n| !n.is_empty());
                let mut pending = None;
                self.pieces = Some(Vec::new());
                for number in numbers {
                    let number = decimal(number, "GNU.sparse.map")?;
                    match pending.take() {
                        None => pending = Some(number),
                        Some(offset) => self.piece(offset, number)?,
                    }
                }
                if pending.is_some() {
                    return Err(TarError::SparseMap);
                }
            }
            b"GNU.sparse.offset" => self.offset = Some(decimal(value, "GNU.sparse.offset")?),
            b"GNU.sparse.numbytes" => {
                let offset = self.offset.take().ok_or(TarError::SparseMap)?;
                self.piece(offset, decimal(value, "GNU.sparse.numbytes")?)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn piece(&mut self, offset: u64, len: u64) -> Result<(), TarError> {
        let pieces = self.pieces.get_or_insert_default();
        if pieces.len() >= SPARSE_EXTENTS_MAX {
            return Err(TarError::SparseExtents);
        }
        pieces.push((offset, len));
        Ok(())
    }
}

/// Splits the first record off; the record comes without its length and newline.
fn split_record(records: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = records.iter().take(8).position(|b| *b == b' ')?;
    let len = usize::try_from(decimal(&records[..space], "").ok()?).ok()?;
    if len <= space + 1 || len > records.len() || records[len - 1] != b'\n' {
        return None;
    }
    Some((&records[space + 1..len - 1], &records[len..]))
}

fn decimal(text: &[u8], name: &'static str) -> Result<u64, TarError> {
    let error = TarError::Number(name);
    if text.is_empty() {
        return Err(error);
    }
    text.iter()
        .try_fold(0_u64, |value, digit| match digit {
            b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
            _ => None,
        })
        .ok_or(error)
}

fn signed(text: &[u8], name: &'static str) -> Result<i64, TarError> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let value = i64::try_from(decimal(digits, name)?).map_err(|_| TarError::Number(name))?;
    Ok(if negative { -value } else { value })
}

/// Seconds with any number of decimals, perhaps negative; cut off below nanoseconds.
fn time(text: &[u8]) -> Result<Timestamp, TarError> {
    let error = TarError::Number("PAX mtime");
    let dot = text.iter().position(|b| *b == b'.').unwrap_or(text.len());
    let (whole, fraction) = (&text[..dot], text.get(dot + 1..).unwrap_or(b""));
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(error);
    }
    let digit = |at| fraction.get(at).map_or(0, |b| u32::from(b - b'0'));
    let nanoseconds = (0..9).fold(0, |value, at| value * 10 + digit(at));
    let seconds = signed(whole, "PAX mtime")?;
    if !whole.starts_with(b"-") || nanoseconds == 0 {
        return Ok(Timestamp {
            seconds,
            nanoseconds,
        });
    }
    // -1.25 is two seconds before 0 plus 0.75.
    Ok(Timestamp {
        seconds: seconds - 1,
        nanoseconds: 1_000_000_000 - nanoseconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut len = body.len() + 1;
        while len != body.len() + len.to_string().len() {
            len = body.len() + len.to_string().len();
        }
        [len.to_string().as_bytes(), &body].concat()
    }

    #[test]
    fn records_are_read_and_taken_back() {
        let mut pax = Pax::default();
        let all = [
            record("path", b"a\xff\n="),
            record("uid", b"4294967295"),
            record("mtime", b"-1.25"),
            record("SCHILY.xattr.user.b", b"\0\n1"),
            record("SCHILY.xattr.user.a", b""),
            record("comment", b"x"),
        ]
        .concat();
        pax.apply(&all).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a\xff\n="[..]));
        assert_eq!(pax.uid, Some(4_294_967_295));
        assert_eq!(
            pax.mtime,
            Some(Timestamp {
                seconds: -2,
                nanoseconds: 750_000_000
            })
        );
        assert_eq!(&*pax.xattrs[0].name, b"user.a");
        assert_eq!(&*pax.xattrs[1].value, b"\0\n1");
        pax.apply(&record("path", b"")).unwrap();
        assert_eq!(pax.path, None);
    }

    #[test]
    fn times_have_any_number_of_decimals() {
        let t = |text: &str| {
            time(text.as_bytes())
                .ok()
                .map(|t| (t.seconds, t.nanoseconds))
        };
        assert_eq!(t("1.000000001999"), Some((1, 1)));
        assert_eq!(t("1.5"), Some((1, 500_000_000)));
        assert_eq!(t("-0.5"), Some((-1, 500_000_000)));
        assert_eq!(t("-3"), Some((-3, 0)));
        assert_eq!(t("7."), Some((7, 0)));
        for bad in ["", "x", "1.x", "--1", "99999999999999999999"] {
            assert_eq!(t(bad), None, "{bad}");
        }
    }

    #[test]
    fn sparse_maps_of_both_old_versions_are_read() {
        let mut pax = Pax::default();
        pax.apply(&record("GNU.sparse.map", b"0,5,10,3")).unwrap();
        assert_eq!(pax.sparse.pieces, Some(vec![(0, 5), (10, 3)]));
        let mut pax = Pax::default();
        let pair = [
            record("GNU.sparse.offset", b"4"),
            record("GNU.sparse.numbytes", b"2"),
        ];
        pax.apply(&pair.concat()).unwrap();
        assert_eq!(pax.sparse.pieces, Some(vec![(4, 2)]));
        assert!(
            Pax::default()
                .apply(&record("GNU.sparse.map", b"1,2,3"))
                .is_err()
        );
        assert!(Pax::default().apply(&pair[1]).is_err());
    }

    #[test]
    fn broken_records_are_refused() {
        for bad in [
            &b"x"[..],
            b"5 a=b",
            b"4 a=\n1",
            b"99 a=b\n",
            b"0 a=b\n",
            b"6 abc\n",
            b" =\n",
        ] {
            assert!(Pax::default().apply(bad).is_err(), "{bad:?}");
        }
        let big = vec![0; XATTR_BYTES_MAX + 1];
        let error = Pax::default()
            .apply(&record("SCHILY.xattr.user.a", &big))
            .unwrap_err();
        assert_eq!(error, TarError::XattrValue(XATTR_BYTES_MAX + 1));
        assert!(
            Pax::default()
                .apply(&record("SCHILY.xattr.user.a", &big[1..]))
                .is_ok()
        );
        let name = format!("SCHILY.xattr.{}", "n".repeat(XATTR_NAME_BYTES_MAX + 1));
        let error = Pax::default().apply(&record(&name, b"")).unwrap_err();
        assert_eq!(error, TarError::XattrName(XATTR_NAME_BYTES_MAX + 1));
    }

    #[test]
    fn global_headers_cannot_pile_up_attributes() {
        let mut pax = Pax::default();
        for i in 0..XATTRS_MAX {
            pax.apply_global(&record(&format!("SCHILY.xattr.user.{i}"), b"1"))
                .unwrap();
        }
        let one_more = pax.apply_global(&record("SCHILY.xattr.user.x", b"1"));
        assert_eq!(one_more, Err(TarError::Xattrs));
        let mut pax = Pax::default();
        let big = vec![0; XATTR_BYTES_MAX];
        let fill = |i| pax.apply_global(&record(&format!("SCHILY.xattr.user.{i}"), &big));
        assert_eq!(
            (0..16).map(fill).find(Result::is_err),
            Some(Err(TarError::Xattrs))
        );
    }
}

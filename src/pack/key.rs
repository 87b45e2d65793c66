//! Keys that packs are signed with: Ed25519 (RFC 8032), as PEM files that `openssl` reads and makes.
//!
//! A secret key is PKCS#8 (RFC 5958, `BEGIN PRIVATE KEY`), a public key is a SubjectPublicKeyInfo
//! (RFC 8410, `BEGIN PUBLIC KEY`). On a command line a public key is `ed25519:` and the base64 of
//! its 32 bytes.
//!
//! *Rejected:* `ed25519-dalek`. It is as well kept, but `ring` is in every binary already, below TLS,
//! and signs and verifies the same; a second implementation would be one more to trust.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What stands before the 32 bytes of a secret key in PKCS#8, version 1 (RFC 8410, section 7).
const PKCS8_HEAD: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// What stands before the 32 bytes of a public key in a SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_HEAD: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

const PREFIX: &str = "ed25519:";

/// Why something is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No PEM section of the kind that is needed.
    #[error("it holds no {0}; an Ed25519 key pair is made by `rsmount key generate FILE`")]
    Missing(&'static str),
    /// Another algorithm, or nonsense.
    #[error("it is not an Ed25519 key")]
    Kind,
    /// Not `ed25519:` and base64 of 32 bytes.
    #[error("a public key is written `ed25519:` and the base64 of 32 bytes")]
    Text,
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// A key that says who has signed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// All public keys of a PEM file.
    pub fn from_pem(pem: &[u8]) -> Result<Vec<PublicKey>, KeyError> {
        let mut keys = Vec::new();
        for section in SubjectPublicKeyInfoDer::pem_slice_iter(pem) {
            let der = section.map_err(|_| KeyError::Missing("public key"))?;
            let key = der.strip_prefix(&SPKI_HEAD[..]).ok_or(KeyError::Kind)?;
            keys.push(PublicKey(key.try_into().map_err(|_| KeyError::Kind)?));
        }
        match keys.is_empty() {
            true => Err(KeyError::Missing("public key")),
            false => Ok(keys),
        }
    }

    /// As a PEM file.
    pub fn to_pem(&self) -> String {
        pem("PUBLIC KEY", &[&SPKI_HEAD[..], &self.0].concat())
    }

    /// Sixteen hex digits that stand for the key, where a signature names who made it.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(self.0);
        digest[..8].iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Whether `signature` was made by this key over `message`.
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        key.verify(message, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        let encoded = text.strip_prefix(PREFIX).ok_or(KeyError::Text)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| KeyError::Text)?;
        Ok(PublicKey(bytes.try_into().map_err(|_| KeyError::Text)?))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<PublicKey, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

/// A key that signs.
pub struct SecretKey(Ed25519KeyPair);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecretKey").field(&self.public()).finish()
    }
}

impl SecretKey {
    /// A new key, and its PEM file.
    pub fn generate() -> Result<(SecretKey, String), KeyError> {
        let mut seed = [0; 32];
        let random = SystemRandom::new();
        random.fill(&mut seed).map_err(|_| KeyError::Random)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::Random)?;
        let pem = pem("PRIVATE KEY", &[&PKCS8_HEAD[..], &seed].concat());
        Ok((SecretKey(pair), pem))
    }

    /// The first secret key of a PEM file, version 1 (openssl's) or 2 of PKCS#8.
    pub fn from_pem(pem: &[u8]) -> Result<SecretKey, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem);
        let der = der.map_err(|_| KeyError::Missing("secret key (PKCS#8, BEGIN PRIVATE KEY)"))?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der());
        pair.map(SecretKey).map_err(|_| KeyError::Kind)
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(bytes)
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }
}

/// A PEM section (RFC 7468); what is put into one here fits into a line or two.
fn pem(label: &str, der: &[u8]) -> String {
    let mut out = format!("-----BEGIN {label}-----\n");
    let encoded = STANDARD.encode(der);
    let mut rest = &*encoded;
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out += line;
        out.push('\n');
        rest = after;
    }
    out + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The secret key of RFC 8032, section 7.1, test 2, as `openssl pkey` writes it.
    const OPENSSL: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n\
        -----END PRIVATE KEY-----\n";

    #[test]
    fn a_key_of_openssl_signs_as_the_rfc_says() {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let key = SecretKey::from_pem(OPENSSL.as_bytes()).unwrap();
        assert_eq!(
            hex(&key.public().0),
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        );
        let signature = key.sign(&[0x72]);
        assert_eq!(
            hex(&signature),
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
        assert!(key.public().has_signed(&[0x72], &signature));
        assert!(!key.public().has_signed(&[0x73], &signature));
    }

    #[test]
    fn what_is_written_is_read() {
        let (key, file) = SecretKey::generate().unwrap();
        let again = SecretKey::from_pem(file.as_bytes()).unwrap();
        assert_eq!(again.public(), key.public());
        let public = key.public();
        assert_eq!(
            PublicKey::from_pem(public.to_pem().as_bytes()),
            Ok(vec![public.clone()])
        );
        assert_eq!(public.to_string().parse(), Ok(public));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let (_, secret) = SecretKey::generate().unwrap();
        assert!(matches!(
            PublicKey::from_pem(secret.as_bytes()),
            Err(KeyError::Missing(_))
        ));
        assert!(SecretKey::from_pem(b"no PEM").is_err());
        for text in ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA"] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError::Text));
        }
    }
}

//! Fixed-size names for products and jobs.
//!
//! The ledger knows a product by the first 96 bits of the SHA-256 of its id: memory does not follow the length
//! of ids, any bytes are safe as a key, and among ten million products the chance that any two share a hash is
//! below 10⁻¹⁵. (Birthday bound: n² / 2⁹⁷. In one process the table of what is done keeps 80 of them, which is 4·10⁻¹¹.)

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hash, Hasher},
};

use sha2::{Digest, Sha256};

/// The ledger's key of a product.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdHash([u8; IdHash::LEN]);

impl IdHash {
    /// Bytes in a hash.
    pub const LEN: usize = 12;

    /// The key of the product with this id.
    #[must_use]
    pub fn of(id: &str) -> Self {
        let digest = Sha256::digest(id.as_bytes());
        let mut bytes = [0; Self::LEN];
        bytes.copy_from_slice(&digest[..Self::LEN]);
        Self(bytes)
    }

    /// The hash whose bytes these are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes, as stored.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl Hash for IdHash {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write(&self.0);
    }
}

/// Something of each of many products. Their keys are uniform already: they are not hashed again.
pub type ByProduct<T> = HashMap<IdHash, T, BuildHasherDefault<AsItIs>>;

/// Takes the beginning of what is uniform for its hash.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.first_chunk().map_or(0, |beginning| u64::from_le_bytes(*beginning));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl fmt::Debug for IdHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The name of everything that decides what a model answers: equal keys, equal question. (128 bits of a SHA-256: unlike an
/// id, a prompt can be as a stranger wants it, and nobody is to be told another question's answer.)
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PromptKey([u8; PromptKey::LEN]);

impl PromptKey {
    /// Bytes in a key.
    pub const LEN: usize = 16;

    /// The key of these parts, in this order.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        let digest = digest(parts);
        let mut bytes = [0; Self::LEN];
        bytes.copy_from_slice(&digest[..Self::LEN]);
        Self(bytes)
    }

    /// The key whose bytes these are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes, as stored.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Debug for PromptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The first 64 bits, in hex, of the SHA-256 of the parts, each preceded by its length so that moving a byte
/// from one part to the next changes the result.
#[must_use]
pub fn fingerprint(parts: &[&[u8]]) -> String {
    digest(parts)[..8].iter().fold(String::with_capacity(16), |mut hex, byte| {
        use fmt::Write;
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_stable_across_releases() {
        // Stored in Redis: a change here orphans every run under way.
        assert_eq!(format!("{:?}", IdHash::of("SM-0001")), "5b79ee153e9080254d8ad402");
        assert_eq!(fingerprint(&[b"a", b"b"]), "cf6ab613e3942391");
        assert!(format!("{:?}", PromptKey::of(&[b"a", b"b"])).starts_with("cf6ab613e3942391"));
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
    }
}

//! Digests: names for what is told by several parts, and how they are written.

use sha2::{Digest, Sha256};

/// The SHA-256 of several parts, none of which holds a NUL: the same for the same parts, and no other's.
pub(crate) fn of_parts(parts: &[impl AsRef<[u8]>]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        // Parts cannot run together.
        hash.update([0]);
    }
    hash.finalize().into()
}

/// Two lower-case digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(of_parts(&["ab", "c"]), of_parts(&["a", "bc"]));
        assert_ne!(of_parts(&["a"]), of_parts(&["a", ""]));
        assert_eq!(hex(&[0, 0x1f, 0xff]), "001fff");
        // What earlier releases have filed under such names is to be found.
        let digest = hex(&of_parts(&["a", "b"]));
        assert!(digest.starts_with("8fb20ef63ced4145"), "{digest}");
    }
}

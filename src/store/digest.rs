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

/// The bytes that so many lower-case digits stand for; `None` if they are not that.
pub(crate) fn from_hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let is_lower_case = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    let is_whole = digits.len() == 2 * N && digits.bytes().all(|digit| is_lower_case(&digit));
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
    }
    is_whole.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(of_parts(&["ab", "c"]), of_parts(&["a", "bc"]));
        assert_ne!(of_parts(&["a"]), of_parts(&["a", ""]));
        assert_eq!(hex(&[0, 0x1f, 0xff]), "001fff");
        assert_eq!(from_hex("001fff"), Some([0, 0x1f, 0xff]));
        for other in ["001ffF", "001ff", "001fff0", "+01fff", "00\u{e9}ff"] {
            assert_eq!(from_hex::<3>(other), None, "{other}");
        }
        // What earlier releases have filed under such names is to be found.
        let digest = hex(&of_parts(&["a", "b"]));
        assert!(digest.starts_with("8fb20ef63ced4145"), "{digest}");
    }
}

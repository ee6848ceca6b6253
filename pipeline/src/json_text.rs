//! Steps through the text of valid JSON, for those who change its layout and nothing else.

/// Whitespace as JSON has it: no vertical tab, no form feed, nothing of Unicode.
#[must_use]
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// The place after the closing quote of the string whose opening quote is at `at`.
#[must_use]
pub fn end_of_string(json: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(distance) = memchr::memchr2(b'"', b'\\', &json[at.min(json.len())..]) {
        at += distance;
        if json[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    json.len()
}

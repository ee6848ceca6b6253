//! Where an element of a JSON array ends, found in chunks of any size and without parsing it.
//!
//! For valid JSON this is exact. For a broken element it looks for the next one, by what can not stand in JSON:
//! a line end inside a string closes the string; a closing bracket closes everything opened since its partner;
//! a `{` where a key must stand belongs to an array around the object, or is the next element; after a string
//! that had to be closed, a `{` that stands first on its line, no deeper in than the element's own, is the next
//! element. A wrong guess can only make rejects, or records that do stand in the text as objects, never mix two
//! of them into one.

use shelfmill_pipeline::json_text::is_space;

/// How many brackets are remembered by kind. Deeper ones are only counted; such a record is refused anyway.
const TRACKED_LEVELS: u32 = u128::BITS;

/// The state inside one element.
#[derive(Default)]
pub(super) struct Scan {
    depth: u32,
    /// For every open bracket, from the outermost in the lowest bit: whether it is an object's.
    objects: u128,
    in_string: bool,
    is_escaped: bool,
    /// The last byte outside strings that is not whitespace; for a string, its closing quote. 0 before the first.
    before: u8,
    /// How far in the element begins, if it is the first on its line.
    indent: Option<usize>,
    /// The same for the next byte outside strings.
    next_indent: Option<usize>,
    /// A string was closed by the end of its line: from here on brackets prove little.
    has_open_string: bool,
}

impl Scan {
    /// For an element with `indent` bytes of whitespace and nothing else before it on its line, or with other text.
    pub(super) fn new(indent: Option<usize>) -> Self {
        Self { indent, ..Self::default() }
    }

    /// Goes on through `chunk`; the number of its bytes that belong to the element, if it ends here.
    pub(super) fn advance(&mut self, chunk: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(&byte) = chunk.get(at) {
            if self.in_string {
                at += self.pass_string(&chunk[at..]);
                if !self.in_string && self.depth == 0 {
                    return Some(at);
                }
                continue;
            }
            if self.ends_before(byte) {
                return Some(at);
            }
            at += 1;
            self.next_indent = indent_after(self.next_indent, byte);
            if is_space(byte) {
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' => self.open(true),
                b'[' => self.open(false),
                b'}' | b']' if self.depth > 0 => {
                    self.close(byte == b'}');
                    if self.depth == 0 {
                        return Some(at);
                    }
                }
                _ => {}
            }
            self.before = byte;
        }
        None
    }

    /// Whether the element is over before this byte, which is outside strings.
    fn ends_before(&mut self, byte: u8) -> bool {
        if byte == b'{' {
            if self.has_open_string && self.next_indent.is_some() && self.next_indent <= self.indent {
                return true;
            }
            while self.is_in_object() && self.before != b':' && self.before != 0 {
                self.depth -= 1;
            }
        }
        // Only numbers, words and what is no JSON at all get here without a bracket around them.
        self.depth == 0
            && self.before != 0
            && (is_space(byte) || matches!(byte, b',' | b']' | b'}' | b'[' | b'{' | b'"'))
    }

    /// Goes through a string to its end or the end of the chunk; the number of bytes passed, at least one.
    fn pass_string(&mut self, chunk: &[u8]) -> usize {
        let mut at = 0;
        loop {
            if std::mem::take(&mut self.is_escaped) && chunk.get(at).is_some_and(|&byte| byte != b'\n') {
                at += 1;
            }
            let Some(distance) = memchr::memchr3(b'"', b'\\', b'\n', &chunk[at..]) else {
                return chunk.len();
            };
            at += distance + 1;
            match chunk[at - 1] {
                b'\\' if at == chunk.len() => {
                    self.is_escaped = true;
                    return at;
                }
                b'\\' => self.is_escaped = true,
                end => {
                    self.in_string = false;
                    self.before = b'"';
                    self.next_indent = indent_after(None, end);
                    self.has_open_string |= end == b'\n';
                    return at;
                }
            }
        }
    }

    fn is_in_object(&self) -> bool {
        (1..=TRACKED_LEVELS).contains(&self.depth) && self.is_object(self.depth)
    }

    /// The kind of an open bracket within the tracked levels, counted from 1.
    fn is_object(&self, level: u32) -> bool {
        self.objects >> (level - 1) & 1 == 1
    }

    fn open(&mut self, is_object: bool) {
        if self.depth < TRACKED_LEVELS {
            let bit = 1 << self.depth;
            self.objects = if is_object { self.objects | bit } else { self.objects & !bit };
        }
        self.depth = self.depth.saturating_add(1);
    }

    /// Closes the innermost bracket of this kind and all inside it; a bracket that closes none is passed over.
    fn close(&mut self, is_object: bool) {
        if self.depth > TRACKED_LEVELS {
            self.depth -= 1;
            return;
        }
        if let Some(level) = (1..=self.depth).rev().find(|&level| self.is_object(level) == is_object) {
            self.depth = level - 1;
        }
    }
}

/// How much whitespace stands before the byte after this one, if nothing else does on its line.
pub(super) fn indent_after(indent: Option<usize>, byte: u8) -> Option<usize> {
    match byte {
        b'\n' => Some(0),
        _ if is_space(byte) => indent.map(|spaces| spaces + 1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The element at the beginning of `text`, the same for any size of chunks.
    fn first_element(text: &str) -> Option<&str> {
        let found: Vec<Option<usize>> = [1, 2, 3, 7, text.len()]
            .into_iter()
            .map(|size| {
                let mut scan = Scan::new(Some(0));
                let mut passed = 0;
                for chunk in text.as_bytes().chunks(size) {
                    if let Some(end) = scan.advance(chunk) {
                        return Some(passed + end);
                    }
                    passed += chunk.len();
                }
                None
            })
            .collect();
        assert!(found.iter().all(|&end| end == found[0]), "{text}: {found:?}");
        found[0].map(|end| &text[..end])
    }

    #[test]
    fn a_sound_element_ends_where_it_ends() {
        for (text, element) in [
            (r#"{"a":1},"#, r#"{"a":1}"#),
            (r#"{"a":{"b":[{},{"c":"]}"}]}}]"#, r#"{"a":{"b":[{},{"c":"]}"}]}}"#),
            (r#"{"a":"\"}\\"}x"#, r#"{"a":"\"}\\"}"#),
            (r#"{"a":"\\\\\"{["}{"#, r#"{"a":"\\\\\"{["}"#),
            (r#"[{"a":1},{}],"#, r#"[{"a":1},{}]"#),
            (r#""a,b]" "#, r#""a,b]""#),
            ("12 ", "12"),
            ("null]", "null"),
            ("-1.5e3,", "-1.5e3"),
        ] {
            assert_eq!(first_element(text), Some(element));
        }
        let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
        assert_eq!(first_element(&format!("{deep},")), Some(&*deep));
        assert_eq!(first_element(r#"{"a":"}"#), None);
        assert_eq!(first_element("12"), None);
    }

    #[test]
    fn a_broken_element_ends_before_the_next() {
        for (text, element) in [
            ("{\"a\":\"x},\n{\"a\":2}", "{\"a\":\"x},\n"),
            (
                "{\"a\":[x\",1],\n \"b\":[{\"c\":1},\n {\"c\":2}]},\n{\"a\":2}",
                "{\"a\":[x\",1],\n \"b\":[{\"c\":1},\n {\"c\":2}]}",
            ),
            ("{\"a\":\"x\\\n{\"a\":2}", "{\"a\":\"x\\\n"),
            (r#"{"a":1,{"a":2}"#, r#"{"a":1,"#),
            (r#"{"a":{"b":1},{"a":2}"#, r#"{"a":{"b":1},"#),
            (r#"{"a":[1},{"a":2}"#, r#"{"a":[1}"#),
            (r#"{"a":1]},{"a":2}"#, r#"{"a":1]}"#),
            (r#"}},{"a":2}"#, "}"),
            (r#"abc{"a":2}"#, "abc"),
            (r#"{"v":[{"b":1,{"b":2}]},{"a":2}"#, r#"{"v":[{"b":1,{"b":2}]}"#),
        ] {
            assert_eq!(first_element(text), Some(element));
        }
    }
}

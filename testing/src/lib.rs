//! Bytes that are nearly right, for the tests of every parser of bytes that others wrote. No crate depends on this but
//! for its tests.
//!
//! Random bytes are refused by the first check and reach nothing behind it. So sound documents are taken and damaged in
//! a few places: bits turned, bytes lost or doubled, the end cut off, a piece of another document put in, and what is
//! known to hurt parsers inserted. Found failures shrink towards few and small damages.

use proptest::{collection::vec, prelude::*, sample::Index};

/// What has hurt parsers before.
const HURTFUL: [&[u8]; 40] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b",",
    b":",
    b"\n",
    b"\r\n",
    b"\r",
    b"\t",
    b"\0",
    b"\x1b[2J",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x92",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00\\ud800",
    b"\xe2\x80\xae",
    b"\xe2\x80\xa8",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x1f\x8b\x08",
    b"1e999",
    b"-1",
    b"-0.0",
    b"18446744073709551616",
    b"0.1e-99999",
    b"NaN",
    b"null",
    b"true",
    b"\"\"",
    b"\"id\":",
    b"\"id\":\"a\",",
    b"{\"id\":\"x\"}",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":",
];

#[derive(Clone, Debug)]
enum Damage {
    Flip { at: Index, bit: u8 },
    Delete { at: Index, bytes: usize },
    Double { from: Index, bytes: usize, to: Index },
    CutOff { at: Index },
    Insert { at: Index, what: usize },
    Splice { at: Index, from: Vec<u8>, begin: Index, bytes: usize },
    Noise { at: Index, what: Vec<u8> },
}

impl Damage {
    fn apply(self, document: &mut Vec<u8>) {
        let place = |at: Index| at.index(document.len() + 1);
        match self {
            Self::Flip { at, bit } => {
                if !document.is_empty() {
                    let at = at.index(document.len());
                    document[at] ^= 1 << bit;
                }
            }
            Self::Delete { at, bytes } => {
                let at = place(at);
                document.drain(at..(at + bytes).min(document.len()));
            }
            Self::Double { from, bytes, to } => {
                let (from, to) = (place(from), place(to));
                let piece = document[from..(from + bytes).min(document.len())].to_vec();
                document.splice(to..to, piece);
            }
            Self::CutOff { at } => document.truncate(place(at)),
            Self::Insert { at, what } => {
                let at = place(at);
                document.splice(at..at, HURTFUL[what].iter().copied());
            }
            Self::Splice { at, from, begin, bytes } => {
                let (at, begin) = (place(at), begin.index(from.len() + 1));
                let piece = from[begin..(begin + bytes).min(from.len())].to_vec();
                document.splice(at..at, piece);
            }
            Self::Noise { at, what } => {
                let at = place(at);
                document.splice(at..at, what);
            }
        }
    }
}

fn damage(documents: Vec<Vec<u8>>) -> impl Strategy<Value = Damage> {
    const LONG: usize = 64;
    let at = any::<Index>;
    prop_oneof![
        3 => (at(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        3 => (at(), 1..LONG).prop_map(|(at, bytes)| Damage::Delete { at, bytes }),
        2 => (at(), 1..LONG, at()).prop_map(|(from, bytes, to)| Damage::Double { from, bytes, to }),
        1 => at().prop_map(|at| Damage::CutOff { at }),
        5 => (at(), 0..HURTFUL.len()).prop_map(|(at, what)| Damage::Insert { at, what }),
        2 => (at(), prop::sample::select(documents), at(), 1..LONG)
            .prop_map(|(at, from, begin, bytes)| Damage::Splice { at, from, begin, bytes }),
        1 => (at(), vec(any::<u8>(), 1..8)).prop_map(|(at, what)| Damage::Noise { at, what }),
    ]
}

/// One of the documents, whole or damaged in up to six places; now and then bytes without any sense.
pub fn nearly<D: AsRef<[u8]>>(documents: impl IntoIterator<Item = D>) -> impl Strategy<Value = Vec<u8>> {
    const DAMAGES: usize = 6;
    let documents: Vec<Vec<u8>> = documents.into_iter().map(|document| document.as_ref().to_vec()).collect();
    let damaged = (prop::sample::select(documents.clone()), vec(damage(documents), 0..=DAMAGES)).prop_map(
        |(mut document, damages)| {
            damages.into_iter().for_each(|damage| damage.apply(&mut document));
            document
        },
    );
    prop_oneof![19 => damaged, 1 => vec(any::<u8>(), 0..200)]
}

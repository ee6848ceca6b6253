//! Strings that keep their length, format and pattern.
//!
//! A pattern wins over a format, a format over words: the stricter promise is the harder one to meet by chance.

use regex_syntax::hir::{Class, Hir, HirKind};
use serde_json::Value;

use crate::dice::Dice;
use crate::schema::Text;
use crate::vocabulary::Topic;
use crate::words::Subject;

/// Longer strings are not made, whatever a schema asks for.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// First by chance, because that looks natural; then towards a length, because the schema wants one.
const PATTERN_TRIES: u32 = 16;
const NATURAL_TRIES: u32 = 4;

const MAX_EXTRA_REPEATS: u32 = 4;

pub(crate) fn make(text: &Text, topic: Topic, subject: &Subject<'_>, dice: &mut Dice) -> Value {
    if let Some(pattern) = &text.pattern {
        return Value::String(matching(pattern, text, dice));
    }
    if let Some(formatted) = text.format.as_deref().and_then(|format| formatted(format, dice)) {
        return Value::String(formatted);
    }
    Value::String(fitted(subject.words(topic, dice), text, subject, dice))
}

fn fitted(mut words: String, text: &Text, subject: &Subject<'_>, dice: &mut Dice) -> String {
    while words.chars().count() < text.min_chars && words.len() < MAX_TEXT_BYTES {
        words.push(' ');
        words.push_str(&subject.sentence(dice));
    }
    if let Some((end, _)) = text.max_chars.and_then(|max| words.char_indices().nth(max)) {
        words.truncate(end);
        let trimmed = words.trim_end();
        if trimmed.chars().count() >= text.min_chars {
            words.truncate(trimmed.len());
        }
    }
    words
}

fn formatted(format: &str, dice: &mut Dice) -> Option<String> {
    let mut from = |low: u64, high: u64| low + dice.below(high - low + 1);
    let date = |from: &mut dyn FnMut(u64, u64) -> u64| {
        format!("{}-{:02}-{:02}", from(2015, 2025), from(1, 12), from(1, 28))
    };
    let time = |from: &mut dyn FnMut(u64, u64) -> u64| {
        format!("{:02}:{:02}:{:02}Z", from(0, 23), from(0, 59), from(0, 59))
    };
    Some(match format {
        "date" => date(&mut from),
        "time" => time(&mut from),
        "date-time" => format!("{}T{}", date(&mut from), time(&mut from)),
        "duration" => format!("P{}D", from(1, 30)),
        "email" | "idn-email" => format!("support-{}@example.com", from(1, 999)),
        "hostname" | "idn-hostname" => format!("shop-{}.example.com", from(1, 999)),
        "uri" | "iri" | "uri-reference" | "iri-reference" | "uri-template" => {
            format!("https://example.com/products/{}", from(1_000, 9_999))
        }
        "ipv4" => format!("192.0.2.{}", from(1, 254)),
        "ipv6" => format!("2001:db8::{:x}", from(1, 0xffff)),
        "uuid" => {
            let (high, low) = (from(0, u64::MAX - 1), from(0, u64::MAX - 1));
            let (a, b, c) = (high >> 32, high >> 16 & 0xffff, high & 0xfff);
            format!("{a:08x}-{b:04x}-4{c:03x}-{:04x}-{:012x}", 0x8000 | low >> 50, low & 0xffff_ffff_ffff)
        }
        "json-pointer" => format!("/products/{}", from(0, 99)),
        "regex" => "^[a-z]+$".to_owned(),
        _ => return None,
    })
}

fn matching(pattern: &Hir, text: &Text, dice: &mut Dice) -> String {
    let longest = text.max_chars.unwrap_or(MAX_TEXT_BYTES).min(text.min_chars.saturating_add(12));
    let mut made = String::new();
    for attempt in 0..PATTERN_TRIES {
        let spare = longest.saturating_sub(text.min_chars) as u64;
        let wanted = text.min_chars + dice.below(spare + 1) as usize;
        made.clear();
        write(pattern, (attempt >= NATURAL_TRIES).then_some(wanted), dice, &mut made);
        let chars = made.chars().count();
        if chars >= text.min_chars && text.max_chars.is_none_or(|max| chars <= max) {
            break;
        }
    }
    made
}

/// Repeats by chance, or just as often as it takes to reach `wanted` bytes.
fn write(pattern: &Hir, wanted: Option<usize>, dice: &mut Dice, out: &mut String) {
    if out.len() > MAX_TEXT_BYTES {
        return;
    }
    match pattern.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => out.push_str(&String::from_utf8_lossy(&literal.0)),
        HirKind::Class(class) => out.extend(pick(class, dice)),
        HirKind::Capture(capture) => write(&capture.sub, wanted, dice, out),
        HirKind::Concat(parts) => parts.iter().for_each(|part| write(part, wanted, dice, out)),
        HirKind::Alternation(branches) => {
            if let Some(branch) = dice.pick(branches) {
                write(branch, wanted, dice, out);
            }
        }
        HirKind::Repetition(repetition) => {
            let (min, max) = (repetition.min, repetition.max.unwrap_or(u32::MAX));
            let extra = dice.below(u64::from((max - min).min(MAX_EXTRA_REPEATS)) + 1) as u32;
            let mut times = 0;
            while times < max && out.len() <= MAX_TEXT_BYTES {
                let more = wanted.map_or(times < min + extra, |wanted| out.len() < wanted);
                if times >= min && !more {
                    break;
                }
                let before = out.len();
                write(&repetition.sub, wanted, dice, out);
                times += 1;
                if out.len() == before && times >= min {
                    break;
                }
            }
        }
    }
}

/// Letters and digits if the class has any, then other visible ASCII, then whatever it begins with.
fn pick(class: &Class, dice: &mut Dice) -> Option<char> {
    const PREFERRED: [&[(char, char)]; 3] =
        [&[('0', '9'), ('A', 'Z'), ('a', 'z')], &[(' ', '~')], &[('\0', char::MAX)]];
    let ranges: Vec<(char, char)> = match class {
        Class::Unicode(class) => class.ranges().iter().map(|range| (range.start(), range.end())).collect(),
        Class::Bytes(class) => {
            class.ranges().iter().map(|range| (range.start().into(), range.end().into())).collect()
        }
    };
    let common = |wanted: &[(char, char)]| -> Vec<(char, char)> {
        let pairs = wanted.iter().flat_map(|a| ranges.iter().map(move |b| (a.0.max(b.0), a.1.min(b.1))));
        pairs.filter(|(start, end)| start <= end).collect()
    };
    let ranges = PREFERRED.into_iter().map(common).find(|common| !common.is_empty())?;
    let (start, end) = *dice.pick(&ranges)?;
    let offset = dice.below(u64::from(u32::from(end) - u32::from(start)) + 1) as u32;
    char::from_u32(u32::from(start) + offset).or(Some(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Every string is checked by the validator, not by a second opinion written here.
    fn always_valid(schema: Value) {
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        let text = Text {
            min_chars: schema["minLength"].as_u64().unwrap_or(0) as usize,
            max_chars: schema["maxLength"].as_u64().map(|max| max as usize),
            format: schema["format"].as_str().map(str::to_owned),
            pattern: schema["pattern"].as_str().map(|pattern| regex_syntax::parse(pattern).unwrap()),
        };
        for seed in 0..50 {
            let mut dice = Dice::new(seed);
            let subject = Subject::of("{\"title\":\"Blaue Tasse für Müsli\"}", "k", &mut dice);
            let made = make(&text, Topic::Sentence, &subject, &mut dice);
            assert!(validator.is_valid(&made), "{made} breaks {schema}");
        }
    }

    #[test]
    fn formats_are_kept() {
        let formats = [
            "date",
            "time",
            "date-time",
            "duration",
            "email",
            "hostname",
            "uri",
            "uri-reference",
            "ipv4",
            "ipv6",
            "uuid",
            "json-pointer",
            "regex",
            "made-up",
        ];
        for format in formats {
            always_valid(json!({"type": "string", "format": format}));
        }
    }

    #[test]
    fn patterns_are_kept() {
        let patterns = [
            r"^[A-Z]{3}-\d{4}$",
            r"^(red|green|blue)( dark)?$",
            r"^\S+@\S+\.[a-z]{2,}$",
            r"^#[0-9a-fA-F]{6}$",
            r"^\w+(?:[-_]\w+)*$",
            "^[^a-z]+$",
            r"^\d{4}-\d{2}(-\d{2})?$",
            "abc",
            "^.*$",
            r"^https?:\/\/.+$",
            "^é+$",
        ];
        for pattern in patterns {
            always_valid(json!({"type": "string", "pattern": pattern}));
        }
        always_valid(
            json!({"type": "string", "pattern": "^[a-z]+$", "minLength": 200, "maxLength": 100_000}),
        );
        always_valid(json!({"type": "string", "pattern": "[a-z]+", "minLength": 3, "maxLength": 5}));
    }

    #[test]
    fn lengths_are_kept() {
        for (min, max) in [(0, 0), (1, 1), (0, 7), (300, 310), (2_000, 9_000)] {
            always_valid(json!({"type": "string", "minLength": min, "maxLength": max}));
        }
    }
}

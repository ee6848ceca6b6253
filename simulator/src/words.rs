//! Believable words for an analysis of a product.
//!
//! One product gets one department, and its category, subcategory and tags come from there, so that an answer reads as
//! if it were about something. Everything is drawn from the dice, hence the same for the same product.

use std::borrow::Cow;

use crate::dice::Dice;
use crate::vocabulary::{
    ADJECTIVES, ATTRIBUTES, AUDIENCES, BRANDS, COLORS, COUNTRIES, CURRENCIES, DEPARTMENTS, Department,
    LANGUAGES, MATERIALS, NOUNS, SENTIMENTS, Topic,
};

/// Longest title taken over from a prompt.
const MAX_TITLE_CHARS: usize = 80;

/// The product an answer is about.
pub(crate) struct Subject<'a> {
    title: Cow<'a, str>,
    department: &'static Department,
}

impl<'a> Subject<'a> {
    #[cfg(test)]
    pub(crate) fn of(prompt: &'a str, key: &'a str, dice: &mut Dice) -> Self {
        Self::in_conversation(prompt, std::iter::empty(), key, dice)
    }

    /// Looks for the product's title in the prompt, then in what was said `earlier`; without one, the product has no
    /// better name than its key.
    pub(crate) fn in_conversation(
        prompt: &'a str,
        mut earlier: impl Iterator<Item = String>,
        key: &'a str,
        dice: &mut Dice,
    ) -> Self {
        let told = || earlier.find_map(|text| title_in(&text).map(|title| Cow::Owned(title.into_owned())));
        let title = title_in(prompt).or_else(told).unwrap_or_else(|| clip(key).into());
        let drawn = dice.pick(&DEPARTMENTS).unwrap_or(&DEPARTMENTS[0]);
        let department = department_of(&title).unwrap_or(drawn);
        Self { title, department }
    }

    pub(crate) fn words(&self, topic: Topic, dice: &mut Dice) -> String {
        let word = match topic {
            Topic::Title => return self.title.clone().into_owned(),
            Topic::Sentence => return self.sentence(dice),
            Topic::Category => self.department.name,
            Topic::Subcategory => dice.word(&self.department.subcategories),
            Topic::AttributeName => dice.word(&ATTRIBUTES),
            Topic::Tag if dice.chance(4) => dice.word(&ADJECTIVES),
            Topic::Tag => dice.word(&self.department.tags),
            Topic::Sentiment => dice.word(&SENTIMENTS),
            Topic::Language => dice.word(&LANGUAGES),
            Topic::Country => dice.word(&COUNTRIES),
            Topic::Currency => dice.word(&CURRENCIES),
            Topic::Color => dice.word(&COLORS),
            Topic::Brand => dice.word(&BRANDS),
            Topic::Material | Topic::AttributeValue => dice.word(&MATERIALS),
            Topic::Audience => dice.word(&AUDIENCES),
            Topic::Price | Topic::Rating | Topic::Share | Topic::Other => {
                return format!("{} {}", dice.word(&ADJECTIVES), dice.word(&NOUNS));
            }
        };
        word.to_owned()
    }

    pub(crate) fn sentence(&self, dice: &mut Dice) -> String {
        let Self { title, department } = self;
        let (adjective, noun, audience) = (dice.word(&ADJECTIVES), dice.word(&NOUNS), dice.word(&AUDIENCES));
        let subcategory = dice.word(&department.subcategories).to_lowercase();
        match dice.below(4) {
            0 => format!("{title}: a {adjective} choice in {subcategory}, made for {audience}."),
            1 => format!("{title} stands out for its {adjective} {noun} and suits {audience}."),
            2 => format!("With its {adjective} {noun}, {title} is a good pick for {audience}."),
            _ => format!("{title} belongs to {subcategory}; buyers will like the {adjective} {noun}."),
        }
    }
}

fn department_of(title: &str) -> Option<&'static Department> {
    let title = title.to_lowercase();
    let words = title.split(|c: char| !c.is_alphanumeric());
    let mut told = words.filter_map(|word| {
        let one = word.strip_suffix('s').unwrap_or(word);
        DEPARTMENTS.iter().find(|department| department.hints.iter().any(|hint| [word, one].contains(hint)))
    });
    told.next()
}

/// Prompts carry the product as JSON (`"title": "…"`) or as lines (`Title: …`).
fn title_in(prompt: &str) -> Option<Cow<'_, str>> {
    const MEMBERS: [&str; 3] = ["\"title\":", "\"name\":", "\"product_name\":"];
    const LINES: [&str; 4] = ["Title:", "title:", "Name:", "name:"];
    let member = MEMBERS.iter().find_map(|member| {
        let after = prompt.split_once(member)?.1.trim_start().strip_prefix('"')?;
        let raw = &after[..end_of_string(after)?];
        if !raw.contains('\\') {
            return Some(Cow::Borrowed(clip(raw)));
        }
        let text: String = serde_json::from_str(&format!("\"{raw}\"")).ok()?;
        Some(Cow::Owned(clip(&text).to_owned()))
    });
    let title = member.or_else(|| {
        let line = LINES.iter().find_map(|label| prompt.split_once(label))?.1;
        Some(Cow::Borrowed(clip(line.lines().next()?.trim())))
    });
    title.filter(|title| !title.trim().is_empty())
}

fn end_of_string(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

fn clip(text: &str) -> &str {
    text.char_indices().nth(MAX_TITLE_CHARS).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_found_in_json_and_in_lines() {
        assert_eq!(title_in(r#"Product: {"id":"1", "title" : 3, "name": "Mug"}"#).unwrap(), "Mug");
        assert_eq!(title_in(r#"{"title":"12\" pan \u00e9"}"#).unwrap(), "12\" pan é");
        assert_eq!(title_in("Analyse.\nTitle: Blue mug\nPrice: 3").unwrap(), "Blue mug");
        assert_eq!(title_in("nothing here"), None);
        assert_eq!(title_in(r#"{"title":"cut"#), None);
    }

    #[test]
    fn words_are_about_the_title() {
        let mut dice = Dice::new(3);
        let subject = Subject::of(r#"{"title":"Blue mug"}"#, "sku-1", &mut dice);
        for _ in 0..20 {
            assert_eq!(subject.words(Topic::Category, &mut dice), "Kitchen");
            assert!(subject.words(Topic::Sentence, &mut dice).contains("Blue mug"));
        }
    }
}

//! Topics and the words that belong to them: data, so that it can be added to without reading code.

/// What a property's name says it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    Title,
    AttributeName,
    AttributeValue,
    Subcategory,
    Category,
    Tag,
    Sentence,
    Sentiment,
    Language,
    Country,
    Currency,
    Color,
    Brand,
    Material,
    Audience,
    Price,
    Rating,
    Share,
    Other,
}

/// The first that is part of a property's name decides, so the more telling ones come first.
const NAMES: [(&str, Topic); 46] = [
    ("subcategor", Topic::Subcategory),
    ("sub_categor", Topic::Subcategory),
    ("categor", Topic::Category),
    ("department", Topic::Category),
    ("product_type", Topic::Subcategory),
    ("keyword", Topic::Tag),
    ("tag", Topic::Tag),
    ("feature", Topic::Tag),
    ("attribute", Topic::Tag),
    ("label", Topic::Tag),
    ("sentiment", Topic::Sentiment),
    ("tone", Topic::Sentiment),
    ("summary", Topic::Sentence),
    ("description", Topic::Sentence),
    ("reason", Topic::Sentence),
    ("explanation", Topic::Sentence),
    ("rationale", Topic::Sentence),
    ("evidence", Topic::Sentence),
    ("comment", Topic::Sentence),
    ("pros", Topic::Sentence),
    ("cons", Topic::Sentence),
    ("text", Topic::Sentence),
    ("language", Topic::Language),
    ("locale", Topic::Language),
    ("country", Topic::Country),
    ("origin", Topic::Country),
    ("currency", Topic::Currency),
    ("color", Topic::Color),
    ("colour", Topic::Color),
    ("brand", Topic::Brand),
    ("manufacturer", Topic::Brand),
    ("vendor", Topic::Brand),
    ("material", Topic::Material),
    ("audience", Topic::Audience),
    ("gender", Topic::Audience),
    ("age_group", Topic::Audience),
    ("price", Topic::Price),
    ("cost", Topic::Price),
    ("amount", Topic::Price),
    ("rating", Topic::Rating),
    ("stars", Topic::Rating),
    ("score", Topic::Share),
    ("confidence", Topic::Share),
    ("probability", Topic::Share),
    ("title", Topic::Title),
    ("name", Topic::Title),
];

impl Topic {
    pub(crate) fn of(property: &str) -> Self {
        let property = property.to_ascii_lowercase();
        let known = NAMES.iter().find(|(part, _)| property.contains(part));
        known.map_or(Self::Other, |(_, topic)| *topic)
    }
}

pub(crate) struct Department {
    pub(crate) name: &'static str,
    pub(crate) subcategories: [&'static str; 5],
    pub(crate) tags: [&'static str; 8],
    /// Words of a title that tell the department.
    pub(crate) hints: [&'static str; 8],
}

pub(crate) const DEPARTMENTS: [Department; 8] = [
    Department {
        name: "Kitchen",
        subcategories: ["Cookware", "Drinkware", "Cutlery", "Bakeware", "Storage"],
        tags: [
            "dishwasher-safe",
            "non-stick",
            "stackable",
            "oven-safe",
            "stoneware",
            "induction",
            "bpa-free",
            "gift",
        ],
        hints: ["mug", "pan", "pot", "knife", "kettle", "bowl", "plate", "cup"],
    },
    Department {
        name: "Clothing",
        subcategories: ["Jackets", "Shirts", "Knitwear", "Trousers", "Socks"],
        tags: [
            "cotton",
            "slim-fit",
            "waterproof",
            "organic",
            "machine-washable",
            "unisex",
            "merino",
            "winter",
        ],
        hints: ["shirt", "jacket", "sock", "sweater", "coat", "dress", "jeans", "hat"],
    },
    Department {
        name: "Electronics",
        subcategories: ["Headphones", "Chargers", "Cameras", "Keyboards", "Speakers"],
        tags: [
            "wireless",
            "usb-c",
            "bluetooth",
            "fast-charging",
            "noise-cancelling",
            "compact",
            "hi-res",
            "backlit",
        ],
        hints: ["headphone", "charger", "camera", "keyboard", "speaker", "cable", "phone", "laptop"],
    },
    Department {
        name: "Home & Garden",
        subcategories: ["Lighting", "Planters", "Bedding", "Tools", "Rugs"],
        tags: [
            "handmade",
            "weatherproof",
            "dimmable",
            "washable",
            "scandinavian",
            "led",
            "foldable",
            "rustic",
        ],
        hints: ["lamp", "planter", "pillow", "rug", "blanket", "candle", "vase", "hose"],
    },
    Department {
        name: "Sports & Outdoors",
        subcategories: ["Camping", "Cycling", "Running", "Climbing", "Yoga"],
        tags: [
            "lightweight",
            "breathable",
            "reflective",
            "trail",
            "insulated",
            "packable",
            "grippy",
            "durable",
        ],
        hints: ["tent", "bike", "helmet", "backpack", "bottle", "ball", "mat", "ski"],
    },
    Department {
        name: "Beauty",
        subcategories: ["Skin Care", "Hair Care", "Fragrance", "Make-up", "Bath"],
        tags: [
            "vegan",
            "fragrance-free",
            "hydrating",
            "spf",
            "cruelty-free",
            "sensitive-skin",
            "refillable",
            "matte",
        ],
        hints: ["cream", "shampoo", "soap", "perfume", "lotion", "lipstick", "serum", "balm"],
    },
    Department {
        name: "Toys & Games",
        subcategories: ["Puzzles", "Board Games", "Building Sets", "Dolls", "Craft Kits"],
        tags: [
            "educational",
            "wooden",
            "family",
            "travel-size",
            "battery-free",
            "cooperative",
            "stem",
            "ages-6-plus",
        ],
        hints: ["puzzle", "game", "toy", "doll", "blocks", "robot", "kite", "plush"],
    },
    Department {
        name: "Office",
        subcategories: ["Notebooks", "Pens", "Desks", "Organisers", "Chairs"],
        tags: [
            "recycled",
            "refillable",
            "ergonomic",
            "a5",
            "adjustable",
            "dotted",
            "fsc-certified",
            "minimalist",
        ],
        hints: ["notebook", "pen", "desk", "chair", "stapler", "folder", "paper", "pencil"],
    },
];

pub(crate) const ADJECTIVES: [&str; 12] = [
    "sturdy",
    "practical",
    "compact",
    "elegant",
    "versatile",
    "lightweight",
    "affordable",
    "durable",
    "classic",
    "modern",
    "comfortable",
    "well-made",
];
pub(crate) const NOUNS: [&str; 12] = [
    "finish",
    "design",
    "handle",
    "texture",
    "fit",
    "packaging",
    "surface",
    "edge",
    "lining",
    "build",
    "shape",
    "set",
];
pub(crate) const AUDIENCES: [&str; 8] = [
    "everyday use",
    "families",
    "beginners",
    "professionals",
    "small homes",
    "travellers",
    "students",
    "gift buyers",
];
pub(crate) const ATTRIBUTES: [&str; 8] =
    ["material", "color", "size", "weight", "capacity", "finish", "origin", "care"];
pub(crate) const SENTIMENTS: [&str; 4] = ["positive", "neutral", "negative", "mixed"];
pub(crate) const LANGUAGES: [&str; 6] = ["en", "de", "fr", "es", "it", "nl"];
pub(crate) const COUNTRIES: [&str; 8] = ["DE", "FR", "IT", "JP", "PL", "PT", "SE", "US"];
pub(crate) const CURRENCIES: [&str; 4] = ["EUR", "USD", "GBP", "JPY"];
pub(crate) const COLORS: [&str; 10] =
    ["black", "white", "blue", "red", "green", "grey", "beige", "navy", "olive", "terracotta"];
pub(crate) const BRANDS: [&str; 10] = [
    "Nordvik",
    "Halden & Co",
    "Brightmere",
    "Tessel",
    "Oakline",
    "Lumora",
    "Fernwell",
    "Kestrel",
    "Alto",
    "Marram",
];
pub(crate) const MATERIALS: [&str; 10] =
    ["cotton", "steel", "oak", "ceramic", "glass", "leather", "wool", "aluminium", "bamboo", "linen"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_topics() {
        let told = ["Subcategory", "category", "tags", "shortSummary", "unit_price", "x"].map(Topic::of);
        let meant =
            [Topic::Subcategory, Topic::Category, Topic::Tag, Topic::Sentence, Topic::Price, Topic::Other];
        assert_eq!(told, meant);
    }
}

//! How many tokens an image may have. Nobody tells before the call, and each provider counts in its own way, by pixels and
//! never by bytes. What is expected is OpenAI's count by tiles ("Images and vision", high detail); what a call may cost at
//! most is what the greediest of those known would count.

/// A tile's side, in pixels.
const TILE: u32 = 512;
/// An image is made to fit a square of this side first,
const LONG_SIDE: f64 = 2048.0;
/// and then its shorter side this.
const SHORT_SIDE: f64 = 768.0;
/// An image of 2048 × 768 pixels.
const MOST_TILES: u64 = 8;
/// The default limit of Qwen's models: 12 845 056 pixels in patches of 28 × 28. OpenAI's patches (10 000 × 1.2), its tiles
/// (1 445), Anthropic's (4 784) and Gemini's are fewer.
const MOST_TOKENS: u64 = 16_384;

/// How a model counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ImageTokens {
    base: u64,
    tile: u64,
}

impl ImageTokens {
    pub(super) fn of(model: &str) -> Self {
        let name = model.rsplit('/').next().unwrap_or(model);
        if name.starts_with("gpt-4o-mini") {
            // As dear as the larger model's, by being more.
            return Self { base: 2_833, tile: 5_667 };
        }
        Self { base: 85, tile: 170 }
    }

    /// Of an image with these pixels; one whose size is not known counts as the largest.
    pub(super) fn estimate(self, size: Option<(u32, u32)>) -> u64 {
        self.base + self.tile * size.map_or(MOST_TILES, tiles)
    }

    /// What no image has more of.
    pub(super) fn most(self) -> u64 {
        self.estimate(None).max(MOST_TOKENS)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "at most 2048, and never negative"
)]
fn tiles((width, height): (u32, u32)) -> u64 {
    let (width, height) = (f64::from(width.max(1)), f64::from(height.max(1)));
    let to_square = (LONG_SIDE / width.max(height)).min(1.0);
    let to_side = (SHORT_SIDE / (width.min(height) * to_square)).min(1.0);
    let along = |side: f64| u64::from(((side * to_square * to_side).round() as u32).max(1).div_ceil(TILE));
    (along(width) * along(height)).min(MOST_TILES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_count_by_tiles_as_openai_says() {
        for (size, expected) in [
            // OpenAI's own examples.
            ((1024, 1024), 765),
            ((2048, 4096), 1105),
            ((1, 1), 255),
            ((512, 512), 255),
            ((513, 512), 425),
            ((2048, 768), 1445),
            ((u32::MAX, 1), 765),
            ((u32::MAX, u32::MAX), 765),
            ((0, 0), 255),
        ] {
            assert_eq!(ImageTokens::of("gpt-4.1").estimate(Some(size)), expected, "{size:?}");
        }
        assert_eq!(ImageTokens::of("gpt-4.1").estimate(None), 1445);
        assert_eq!(ImageTokens::of("openai/gpt-4o-mini-2024-07-18").estimate(Some((1024, 1024))), 25_501);
        for model in ["gpt-4o-mini", "gpt-4.1-mini", "qwen"] {
            let tokens = ImageTokens::of(model);
            assert!(tokens.most() >= tokens.estimate(None).max(MOST_TOKENS), "{model}");
        }
    }
}

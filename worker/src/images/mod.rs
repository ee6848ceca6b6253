//! The images of a product: found in its fields, fetched before a call is reserved, sent as data URLs.
//!
//! - What a product names is the product's word, not the user's: a URL leads to public addresses only ([`address`],
//!   [`fetch`]), a path into one folder only ([`folder`]), and neither to more than `max_bytes`.
//! - An image counts as what its first bytes say, whatever its server or its name says.
//! - What cannot be had for good fails the product without a call; what may heal costs it an attempt, and no call either.
//! - Memory is bounded twice: by `concurrency` × `max_images` × `max_bytes`, and by [`MAX_HELD_BYTES`] for the process.
//! - No message has more of a URL than scheme, host and path: keys are put into the rest.
//!
//! Only here ([`fetch`]) and in `model` reqwest is known.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use imagesize::ImageType;
use serde_json::{Value, value::RawValue};
use shelfmill_pipeline::{
    failure::FailureClass,
    job::{Image, Images},
};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::model::CallFailure;
use fetch::Web;
use folder::Folder;
use sources::{Place, Source, sources};

mod address;
mod fetch;
mod folder;
mod sources;

pub use sources::count_images;

/// Images that all products of a process hold at once, as they came; encoded and in requests they take less than three
/// times as much. A product whose images may be larger than all of this waits until it is alone.
const MAX_HELD_BYTES: u32 = 256 * 1024 * 1024;
/// What places are counted in: a semaphore has too few for bytes.
const UNIT_BYTES: u64 = 1024;
const UNITS: u32 = MAX_HELD_BYTES / 1024;
/// Of one product's.
const AT_ONCE: usize = 4;

static HELD: Semaphore = Semaphore::const_new(UNITS as usize);

/// Fetches what a job's products show.
#[derive(Debug)]
pub(crate) struct Fetcher {
    images: Images,
    web: Web,
    folder: Option<Folder>,
}

/// The images of one product, and the room they take.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) images: Vec<Arc<Image>>,
    _room: Option<SemaphorePermit<'static>>,
}

/// Why an image cannot be sent; which image is said around it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble {
    class: FailureClass,
    why: String,
    retry_after: Option<Duration>,
}

impl Trouble {
    /// Nothing will change that.
    fn for_good(why: impl Into<String>) -> Self {
        Self { class: FailureClass::ImageUnusable, why: why.into(), retry_after: None }
    }

    /// It may be otherwise soon.
    fn passing(why: impl Into<String>) -> Self {
        Self::passing_as(FailureClass::Network, why)
    }

    fn passing_as(class: FailureClass, why: impl Into<String>) -> Self {
        Self { class, why: why.into(), retry_after: None }
    }

    fn too_large(max_bytes: u64) -> Self {
        Self::for_good(format!("it is larger than {max_bytes} bytes (llm.images.max_bytes)"))
    }

    fn of(self, field: &str, what: &str) -> CallFailure {
        let Self { class, why, retry_after } = self;
        let message = format!("the image in field '{field}', {what}: {why}");
        CallFailure { retry_after, ..CallFailure::new(class, message) }
    }
}

impl Fetcher {
    pub(crate) fn new(images: &Images) -> anyhow::Result<Self> {
        Ok(Self {
            web: Web::new(images.allow_private).context("cannot make an HTTP client for images")?,
            folder: images.folder.as_deref().map(Folder::new),
            images: images.clone(),
        })
    }

    /// What the product shows, unfetched: two products with equal names have equal images.
    pub(crate) fn names(&self, product: &RawValue) -> String {
        let sources = |product: &Value| {
            let sources = sources(&self.images, product).ok()?;
            Some(sources.iter().map(|source| format!("{:?}\n", source.place)).collect())
        };
        // What cannot be read is equal to nothing else.
        serde_json::from_str(product.get())
            .ok()
            .and_then(|product| sources(&product))
            .unwrap_or(product.to_string())
    }

    /// The product's images, in the order of the fields.
    pub(crate) async fn fetch(&self, product: &RawValue) -> Result<Shown, CallFailure> {
        let unreadable = |error: serde_json::Error| {
            CallFailure::new(FailureClass::Unpromptable, format!("the product cannot be read: {error}"))
        };
        let product: Value = serde_json::from_str(product.get()).map_err(unreadable)?;
        let sources = sources(&self.images, &product)?;
        if sources.is_empty() {
            return Ok(Shown::default());
        }
        // All at once, so that no product waits for room while it holds some: two such would wait forever.
        let most = self.images.max_bytes.saturating_mul(sources.len() as u64);
        let mut room = HELD.acquire_many(units(most)).await.map_err(|error| {
            CallFailure::new(FailureClass::Network, format!("no room for the product's images: {error}"))
        })?;
        let fetches: Vec<_> = sources.iter().map(|source| self.image(source)).collect();
        let fetched: Vec<(Arc<Image>, u64)> = stream::iter(fetches).buffered(AT_ONCE).try_collect().await?;
        let held = units(fetched.iter().map(|(_, size_bytes)| size_bytes).sum());
        drop(room.split(room.num_permits().saturating_sub(held as usize)));
        Ok(Shown { images: fetched.into_iter().map(|(image, _)| image).collect(), _room: Some(room) })
    }

    /// One image, and its size as it came.
    async fn image(&self, source: &Source<'_>) -> Result<(Arc<Image>, u64), CallFailure> {
        let max_bytes = self.images.max_bytes;
        let found = match &source.place {
            Place::Url(url) => self.web.get(url, max_bytes).await,
            Place::Path(path) => match &self.folder {
                Some(folder) => folder.read(path, max_bytes).await,
                None => {
                    Err(Trouble::for_good("it is a path, and the job names no folder (llm.images.folder)"))
                }
            },
        };
        let image = found.and_then(|bytes| Ok((Arc::new(encode(&bytes)?), bytes.len() as u64)));
        image.map_err(|trouble| trouble.of(source.field, &source.place.to_string()))
    }
}

/// Never more than there are.
fn units(size_bytes: u64) -> u32 {
    u32::try_from(size_bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(UNITS)
}

/// As a data URL, if it is of a kind that models take.
fn encode(bytes: &[u8]) -> Result<Image, Trouble> {
    let kind = match imagesize::image_type(bytes) {
        Ok(ImageType::Png) => "image/png",
        Ok(ImageType::Jpeg) => "image/jpeg",
        Ok(ImageType::Gif) => "image/gif",
        Ok(ImageType::Webp) => "image/webp",
        _ if bytes.is_empty() => return Err(Trouble::for_good("it is empty")),
        _ => return Err(Trouble::for_good("it is not a PNG, JPEG, GIF or WebP image")),
    };
    // An odd header is the model's business; its size is only counted by.
    let size = imagesize::blob_size(bytes).ok();
    let size =
        size.and_then(|size| Some((u32::try_from(size.width).ok()?, u32::try_from(size.height).ok()?)));
    let mut data_url = format!("data:{kind};base64,");
    data_url.reserve_exact(bytes.len().div_ceil(3) * 4);
    STANDARD.encode_string(bytes, &mut data_url);
    Ok(Image { data_url, size })
}

#[cfg(test)]
mod tests;

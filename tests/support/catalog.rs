//! Catalogs for tests.

use std::{fmt::Write as _, fs, ops::Range, path::PathBuf};

use tempfile::TempDir;

/// A catalog in a folder of its own, and where its results go.
pub(crate) struct Catalog {
    folder: TempDir,
    pub(crate) ids: Vec<String>,
}

impl Catalog {
    /// With so many products, as JSONL.
    pub(crate) fn of(products: usize) -> Self {
        let catalog = Self { folder: super::watchdog::temp_dir("catalog"), ids: Vec::new() };
        catalog.with(0..products)
    }

    /// The same catalog with these products instead.
    pub(crate) fn with(mut self, products: Range<usize>) -> Self {
        let mut text = String::new();
        self.ids = products.clone().map(|number| format!("SM-{number:06}")).collect();
        for (number, id) in products.zip(&self.ids) {
            let line = serde_json::json!({
                "id": id,
                "title": format!("Kettle \"No. {number}\", größer"),
                "description": "Boils water.\nQuietly.",
                "price": number
            });
            writeln!(text, "{line}").expect("a string takes everything");
        }
        fs::write(self.input(), text).expect("a catalog");
        self
    }

    /// The input file.
    pub(crate) fn input(&self) -> PathBuf {
        self.folder.path().join("products.jsonl")
    }

    /// The output folder.
    pub(crate) fn out(&self) -> PathBuf {
        self.folder.path().join("output")
    }

    /// A file with this text beside the catalog.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("a file");
        path
    }

    /// `[a, b]` as options for the input and the output.
    pub(crate) fn args(&self) -> Vec<std::ffi::OsString> {
        vec![self.input().into(), "--out".into(), self.out().into()]
    }
}

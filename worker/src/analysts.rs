//! Who does the run's job, and who does it otherwise for products that were put back with changes.
//!
//! Each way to ask has an analyst of its own: what was learned of a model (its tokens, its server's dialect, its refusals) is
//! not mixed with what was learned of another. They are made when first needed and few are kept; a changed job makes all of
//! them anew.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use shelfmill_pipeline::{
    changes::Changes,
    job::Job,
    ledger::{Ledger, Pulse},
};

use crate::{WorkerConfig, analysis::Analyst, routes::Route};

/// Different changes that one worker keeps ready. More are made anew, which takes milliseconds.
const MAX_KEPT: usize = 32;

/// Everybody who does the job.
pub(crate) struct Analysts {
    current: RwLock<Arc<OfJob>>,
}

struct OfJob {
    plain: Arc<Analyst>,
    changed: Mutex<HashMap<String, Arc<Analyst>>>,
}

impl OfJob {
    fn new(plain: Analyst) -> Arc<Self> {
        Arc::new(Self { plain: Arc::new(plain), changed: Mutex::default() })
    }
}

impl Analysts {
    pub(crate) fn new(plain: Analyst) -> Self {
        Self { current: RwLock::new(OfJob::new(plain)) }
    }

    /// The job has changed.
    pub(crate) fn replace(&self, plain: Analyst) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = OfJob::new(plain);
    }

    fn current(&self) -> Arc<OfJob> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether they do this job.
    pub(crate) fn are_of(&self, job: &Job) -> bool {
        self.current().plain.is_of(job)
    }

    /// What is under way, all together.
    pub(crate) fn pulse(&self) -> Pulse {
        let current = self.current();
        let changed: Vec<Pulse> = current
            .changed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .map(|analyst| Pulse { limit: 0, ceiling: 0, ..analyst.pulse() })
            .collect();
        Pulse::sum(changed.iter().chain([&current.plain.pulse()]))
    }

    /// The run has results already: its keys were good.
    pub(crate) fn have_been_answered(&self) {
        self.current().plain.routes.iter().for_each(Route::answered);
    }

    /// Who asks so. (The ledger is asked for what is known of a server when such a one is made, and not for each product.)
    pub(crate) async fn with(
        &self,
        changes: &Changes,
        config: &WorkerConfig,
        ledger: &dyn Ledger,
    ) -> anyhow::Result<Arc<Analyst>> {
        let current = self.current();
        if changes.is_empty() {
            return Ok(Arc::clone(&current.plain));
        }
        let key = changes.encode();
        let kept = || current.changed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(analyst) = kept().get(&key) {
            return Ok(Arc::clone(analyst));
        }
        let analyst = Arc::new(current.plain.changed(config, changes)?);
        analyst.follow_dialect(ledger).await?;
        let mut kept = kept();
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        // Of several that were made at once, the first stays.
        Ok(Arc::clone(kept.entry(key).or_insert(analyst)))
    }

    /// Follows what other workers have found out of the servers.
    pub(crate) async fn follow_dialects(&self, ledger: &dyn Ledger) {
        let current = self.current();
        let changed: Vec<_> =
            current.changed.lock().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect();
        for analyst in std::iter::once(&current.plain).chain(&changed) {
            if let Err(error) = analyst.follow_dialect(ledger).await {
                tracing::debug!(%error, "could not follow what is known of the model's server");
            }
        }
    }
}

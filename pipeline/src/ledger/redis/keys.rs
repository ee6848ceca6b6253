//! What a run has in Redis, and the scripts that change it.

use redis::Script;

use crate::identity::IdHash;

pub(super) struct Keys {
    pub(super) run: String,
    pub(super) claims: String,
    pub(super) answers: String,
    pub(super) failures: String,
    pub(super) spent: String,
    pub(super) pace: String,
    pub(super) workers: String,
    pub(super) prompts: String,
    pub(super) roles: String,
}

/// Hashes of products.
pub(super) const BUCKETS: u16 = 1 << 15;

impl Keys {
    pub(super) fn of(run: &str) -> Self {
        let key = |what: &str| format!("shelfmill:{{{run}}}:{what}");
        Self {
            run: key("run"),
            claims: key("claims"),
            answers: key("answers"),
            failures: key("failures"),
            spent: key("spent"),
            pace: key("pace"),
            workers: key("workers"),
            prompts: key("prompts"),
            roles: key("roles"),
        }
    }

    pub(super) fn bucket(&self, product: &IdHash) -> String {
        let [high, low, ..] = *product.as_bytes();
        self.bucket_at(u16::from_be_bytes([high, low]) >> 1)
    }

    /// All but the products.
    pub(super) fn all(&self) -> Vec<String> {
        let Self { run, claims, answers, failures, spent, pace, workers, prompts, roles } = self;
        [run, claims, answers, failures, spent, pace, workers, prompts, roles].map(Clone::clone).to_vec()
    }

    pub(super) fn bucket_at(&self, index: u16) -> String {
        format!("{}:{index:x}", self.run.trim_end_matches("run").trim_end_matches(':'))
    }
}

/// A script with what all may use; its flags come first.
fn script(text: &str) -> Script {
    let (flags, text) = match text.split_once('\n') {
        Some((flags, rest)) if flags.starts_with("#!") => (flags, rest),
        _ => ("", text),
    };
    Script::new(&format!("{flags}\n{}{text}", include_str!("fields.lua")))
}

macro_rules! scripts {
    ($($name:ident),*) => {
        pub(super) struct Scripts { $(pub(super) $name: Script),* }
        impl Scripts {
            pub(super) fn new() -> Self {
                Self { $($name: script(include_str!(concat!(stringify!($name), ".lua")))),* }
            }
        }
    };
}
scripts!(
    abandon,
    admit,
    ask_prompt,
    begin,
    begin_call,
    begin_scan,
    claim,
    claimed,
    end_call,
    forget,
    hold_pen,
    keep_prompt_answer,
    keep_scan,
    meet,
    pause,
    permits,
    pulse,
    pulses,
    put_answer,
    record,
    refused,
    release,
    renew,
    reopen,
    report,
    seal,
    spent_at_least,
    states
);

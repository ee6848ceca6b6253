//! From the command line to a job and an input.

use anyhow::anyhow;
use shelfmill_pipeline::{
    job::{Job, Llm, Prompt},
    ledger::{Begun, Ledger},
};
use shelfmill_producer::input::{Entry, InputOptions, Source};
use shelfmill_worker::check_base_url;

use crate::{
    cli::{InputArgs, JobArgs},
    end::Usage,
    fleet,
};

/// The job of a file, or the built-in one, with what the command line changes of it.
pub(crate) fn job(args: &JobArgs) -> anyhow::Result<Job> {
    let mut job = match &args.job {
        Some(file) => Job::read(file)?,
        None => Job::default(),
    };
    if let Some(model) = &args.model {
        job.llm.model.clone_from(model);
    }
    if let Some(url) = args.base_url.as_deref().or(job.llm.base_url.as_deref()) {
        check_base_url(url)?;
    }
    if args.base_url.is_some() {
        if !job.llm.endpoints.is_empty() {
            return Err(anyhow!(Usage(
                "the job lists its endpoints, and --base-url (or OPENAI_BASE_URL) names another: leave one of the two out"
                    .to_owned()
            )));
        }
        job.llm.base_url.clone_from(&args.base_url);
    }
    if let Some(delay) = args.delay {
        job.limits.delay_ms = u64::try_from(delay.as_millis())?;
    }
    if let Some(budget) = args.budget {
        job.limits.budget = Some(budget);
    }
    if let Some(rate) = args.abort_failure_rate {
        job.limits.abort_failure_rate = rate;
    }
    if let Some(percentile) = args.hedge_after {
        job.limits.hedge_after = Some(percentile);
    }
    job.limits.dedupe_prompts |= args.dedupe_prompts;
    if job.limits.dedupe_prompts && prompt(&job)?.names_id() {
        return Err(anyhow!(Usage(format!(
            "no two prompts are equal where they have {{{{ id }}}}, as {} does: dedupe_prompts would never save a call. Give \
             a job file (--job) whose prompt has only what decides the answer, such as {{{{ product.title }}}}",
            if job.prompt == Job::default().prompt { "the built-in one" } else { "this job's" }
        ))));
    }
    job.check_budget()?;
    Ok(job)
}

/// Whether it is known whom to ask, and with which key.
pub(crate) fn names_a_model(job: &Job) -> bool {
    job.llm.base_url.is_some()
        || !job.llm.endpoints.is_empty()
        || job.llm.api_keys != Llm::default().api_keys
        || job.llm.api_keys.iter().any(|variable| fleet::find_key(variable).is_some())
}

/// What is to be read.
pub(crate) fn input(args: &InputArgs) -> InputOptions {
    let is_stdin = args.input.as_os_str() == "-";
    InputOptions {
        source: if is_stdin { Source::Stdin } else { Source::File(args.input.clone()) },
        format: args.format,
        id_field: args.id_field.clone(),
        limit: args.limit,
    }
}

/// The job's templates, compiled.
pub(crate) fn prompt(job: &Job) -> Result<Prompt, Usage> {
    Prompt::compile(&job.prompt)
        .map_err(|errors| Usage(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}

/// Fails where a template asks for what none of the first products has: better told now than by every product.
pub(crate) fn check_prompt(job: &Job, input: &InputOptions) -> anyhow::Result<()> {
    const PRODUCTS_TRIED: usize = 20;
    if !shelfmill_producer::can_be_read_twice(input) {
        return Ok(());
    }
    let prompt = prompt(job)?;
    let mut first_error = None;
    for entry in shelfmill_producer::input::open(input)?.take(PRODUCTS_TRIED) {
        let Entry::Record(record) = entry? else { continue };
        match prompt.render(&record.id, &record.body) {
            Ok(messages) => {
                if job.limits.dedupe_prompts && messages.iter().any(|said| has_id(&said.content, &record.id))
                {
                    tracing::warn!(
                        id = ?record.id,
                        "the first prompt seems to have the product's id in it (the whole product?): if all have, none are \
                         equal, and dedupe_prompts saves no call"
                    );
                }
                return Ok(());
            }
            Err(error) => drop(first_error.get_or_insert((record.line, error))),
        }
    }
    match first_error {
        None => Ok(()),
        Some((line, error)) => Err(anyhow!(Usage(format!(
            "no prompt can be made of the first products; of the one in line {line}: {error}. A field that not every \
             product has is written {{{{ product.field | default('') }}}}"
        )))),
    }
}

/// Whether the text has the id as a word of its own; a short one may be there by chance.
fn has_id(text: &str, id: &str) -> bool {
    const LEAST_BYTES: usize = 4;
    let is_apart = |end: Option<char>| !end.is_some_and(char::is_alphanumeric);
    id.len() >= LEAST_BYTES
        && text.match_indices(id).any(|(at, _)| {
            is_apart(text[..at].chars().next_back()) && is_apart(text[at + id.len()..].chars().next())
        })
}

/// Begins the run, or goes on with it; a job that asks something else than before is refused.
pub(crate) async fn begin(
    ledger: &dyn Ledger,
    job: &Job,
    run: &str,
    accept_changed: bool,
) -> anyhow::Result<()> {
    match ledger.begin(job, accept_changed).await? {
        Begun::Accepted => Ok(()),
        Begun::Changed { differences } => Err(anyhow!(Usage(format!(
            "the job of run '{run}' has changed since the run began ({}). Choose: --run NAME begins a new run beside \
             it; --accept-changed-job goes on with this one, and products that are done keep the answers they have",
            differences.join(", ")
        )))),
    }
}

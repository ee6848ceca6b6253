//! `shelfmill check`: what a run would do, without a call.

use std::{collections::HashSet, process::ExitCode};

use shelfmill_pipeline::{
    identity::IdHash,
    job::{Job, Prompt},
};
use shelfmill_producer::input::{self, Entry, Record};
use shelfmill_worker::{count_images, estimate_tokens};

use crate::{
    cli::CheckArgs,
    end::{DONE, Usage},
    foreign, job,
};

/// Rejects told one by one.
const REJECTS_TOLD: u64 = 10;
/// What answers are assumed to have, where the ceiling is higher: those of the built-in job have about so many.
const ASSUMED_ANSWER_TOKENS: u64 = 250;

#[derive(Default)]
struct Findings {
    products: u64,
    rejects: u64,
    unpromptable: u64,
    images: u64,
    prompt_tokens: u64,
}

pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let job = job::job(&args.job)?;
    let prompt = job::prompt(&job)?;
    let mut findings = Findings::default();
    let mut met = HashSet::new();
    for entry in input::open(&job::input(&args.input))? {
        match entry? {
            Entry::Record(record) if met.insert(IdHash::of(&record.id)) => {
                product(&mut findings, &prompt, &job, &record);
            }
            Entry::Record(record) => {
                reject(
                    &mut findings,
                    record.line,
                    "duplicate_id",
                    &format!("the id {:?} came before", record.id),
                );
            }
            Entry::Reject(found) => {
                reject(&mut findings, found.line, &found.reason.to_string(), &found.detail)
            }
        }
    }
    conclude(&findings, &job);
    if args.input.strict && findings.rejects > 0 {
        return Err(Usage(format!("{} records are no product", findings.rejects)).into());
    }
    Ok(ExitCode::from(DONE))
}

fn product(findings: &mut Findings, prompt: &Prompt, job: &Job, record: &Record) {
    findings.products += 1;
    match prompt.render(&record.id, &record.body) {
        Ok(messages) => {
            if findings.products == 1 {
                println!(
                    "The first prompt, for {} as {} would get it:",
                    foreign::line(&record.id),
                    job.llm.model
                );
                for message in &messages {
                    println!("--- {}\n  {}", message.role, foreign::lines(&message.content));
                }
                println!("---");
            }
            let images = images_of(job, record);
            findings.images += images;
            findings.prompt_tokens += estimate_tokens(&messages, images);
        }
        Err(error) => {
            findings.unpromptable += 1;
            if findings.unpromptable <= REJECTS_TOLD {
                println!(
                    "line {}: no prompt can be made: {}",
                    record.line,
                    foreign::line(&error.to_string())
                );
            }
        }
    }
}

/// How many of them would be sent with it.
fn images_of(job: &Job, record: &Record) -> u64 {
    let product = || serde_json::from_str(record.body.get()).ok();
    job.llm.images.as_ref().and_then(|images| Some(count_images(images, &product()?))).unwrap_or(0)
}

fn reject(findings: &mut Findings, line: u64, reason: &str, detail: &str) {
    findings.rejects += 1;
    if findings.rejects <= REJECTS_TOLD {
        println!("line {line}: {} ({reason})", foreign::line(detail));
    } else if findings.rejects == REJECTS_TOLD + 1 {
        println!("and more");
    }
}

fn conclude(findings: &Findings, job: &Job) {
    let Findings { products, rejects, unpromptable, images, prompt_tokens } = findings;
    println!("Products: {products}");
    println!("Rejects: {rejects}");
    if *unpromptable > 0 {
        println!("Products without a prompt: {unpromptable} (they would fail as unpromptable)");
    }
    if job.llm.images.is_some() {
        println!("Images: {images} (none is fetched here; each is counted as a large one)");
    }
    let answers = products * u64::from(job.llm.max_output_tokens).min(ASSUMED_ANSWER_TOKENS);
    println!("Estimated tokens: {prompt_tokens} to read, about {answers} to write");
    match job.cost_usd(*prompt_tokens, answers) {
        Some(cost) => println!("Estimated cost: ${cost:.2}"),
        None => println!("Estimated cost: unknown; name prices under [llm] in the job file to see it"),
    }
}

//! Prompts that several products share (`dedupe_prompts`): one product asks, the others get its answer.
//!
//! - Two questions are the same when everything that decides the answer is: the rendered messages, the schema, the models,
//!   and how they are asked. Which endpoint is asked does not matter.
//! - Who waits makes no call and spends no attempt. It waits in place for a moment, then gives its task back: others need
//!   the place. The one that asks has a place of its own, so that it goes on however many wait.
//! - The answer is kept for others before it is kept for the product it was asked for. Cut off in between, that product
//!   finds it, too; the call counts as lost, as that of any claim that ran out.

use std::time::Duration;

use shelfmill_pipeline::{
    crash::{self, Point},
    identity::PromptKey,
    job::Job,
    ledger::{ClaimToken, PromptAnswer, PromptTurn},
    message::{Outcome, Task},
    signature::AnsweredBy,
};

use crate::{
    analysis::{Analyst, Services, Verdict, waited},
    conversation::Conversation,
};

/// How soon to look for another's answer first; doubled for each further look.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const SLOWEST_LOOK: Duration = Duration::from_millis(400);
/// The longest wait that holds a place.
const WAIT_IN_PLACE: Duration = Duration::from_secs(2);
/// When to come again after that.
const LATER: Duration = Duration::from_secs(1);

/// What is done about a product's prompt.
pub(crate) enum Shared {
    /// The model is asked; its answer is for all products that have the prompt, where there is a key.
    Ask(Option<PromptKey>),
    /// It need not be asked, or not now.
    Verdict(Verdict),
}

/// What all questions of a job have in common; `None` where each product asks its own.
pub(crate) fn question_of(job: &Job) -> Option<PromptKey> {
    let llm = &job.llm;
    job.limits.dedupe_prompts.then(|| {
        let asked = serde_json::json!({
            "schema": job.output.schema,
            "models": llm.models(),
            "temperature": llm.temperature,
            "extra": llm.extra,
            "max_output_tokens": llm.max_output_tokens,
            "max_output_tokens_limit": llm.output_tokens_limit(),
            "structured": llm.structured,
            "on_overflow": llm.on_overflow,
            "images": llm.images,
        });
        PromptKey::of(&[asked.to_string().as_bytes()])
    })
}

impl Analyst {
    /// Finds out whether the model is to be asked for this product.
    pub(crate) async fn shared(
        &self,
        conversation: &Conversation,
        task: &Task,
        token: &ClaimToken,
        services: Services<'_>,
    ) -> anyhow::Result<Shared> {
        let Some(prompt) = self.prompt_key(conversation, task)? else { return Ok(Shared::Ask(None)) };
        let (mut look, mut waits) = (FIRST_LOOK, Duration::ZERO);
        loop {
            match services.ledger.ask_prompt(&prompt, (task.hash(), token)).await? {
                PromptTurn::Ask => return Ok(Shared::Ask(Some(prompt))),
                PromptTurn::Answered(answer) => {
                    return Ok(Shared::Verdict(Verdict::Outcome(self.answered_as(task, answer))));
                }
                PromptTurn::Busy if waits >= WAIT_IN_PLACE => {
                    return Ok(Shared::Verdict(Verdict::Later(LATER)));
                }
                PromptTurn::Busy if !waited(look, services.stopper).await => {
                    return Ok(Shared::Verdict(Verdict::Later(Duration::ZERO)));
                }
                PromptTurn::Busy => {
                    waits += look;
                    look = (look * 2).min(SLOWEST_LOOK);
                }
            }
        }
    }

    /// Keeps the answer for all products with this prompt.
    pub(crate) async fn share(
        &self,
        prompt: Option<&PromptKey>,
        answer: impl FnOnce() -> PromptAnswer,
        services: Services<'_>,
    ) -> anyhow::Result<()> {
        let Some(prompt) = prompt else { return Ok(()) };
        let answer = answer();
        services.ledger.keep_prompt_answer(prompt, &answer).await?;
        crash::point_of(Point::WorkerShared, &answer.id);
        Ok(())
    }

    fn prompt_key(&self, conversation: &Conversation, task: &Task) -> anyhow::Result<Option<PromptKey>> {
        let Some(question) = &self.question else { return Ok(None) };
        let messages = serde_json::to_vec(conversation.first())?;
        let images = self.fetcher.as_ref().map(|fetcher| fetcher.names(&task.product)).unwrap_or_default();
        Ok(Some(PromptKey::of(&[question.as_bytes(), &messages, images.as_bytes()])))
    }

    /// No call was made for this product. (One that was lost before it could keep its own answer may find that.)
    fn answered_as(&self, task: &Task, answer: PromptAnswer) -> Outcome {
        let same_prompt_as = Some(answer.id).filter(|id| *id != task.id);
        let by = AnsweredBy { model: answer.model, endpoint: answer.endpoint, same_prompt_as };
        self.signature.completed(task, &answer.analysis, by, Duration::ZERO, answer.shortened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_the_answer_decides_whether_questions_are_the_same() {
        let mut job = Job::default();
        assert!(question_of(&job).is_none());
        job.limits.dedupe_prompts = true;
        let same = question_of(&job).unwrap();
        let changed = |change: fn(&mut Job)| {
            let mut job = job.clone();
            change(&mut job);
            question_of(&job).unwrap()
        };
        assert_eq!(changed(|job| job.llm.base_url = Some("http://elsewhere/v1".to_owned())), same);
        assert_eq!(changed(|job| job.limits.concurrency = 7), same);
        for change in [
            (|job| job.llm.model = "another".to_owned()) as fn(&mut Job),
            |job| job.llm.temperature = Some(0.5),
            |job| job.llm.max_output_tokens = 7,
            |job| job.llm.max_output_tokens_limit = Some(7),
            |job| drop(job.llm.extra.insert("seed".to_owned(), 7.into())),
            |job| job.output.schema = serde_json::json!({ "type": "object" }),
        ] {
            assert_ne!(changed(change), same);
        }
    }
}

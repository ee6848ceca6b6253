//! What is asked at the same time is asked together: one script for all of them.
//!
//! Nobody waits for company. A question leaves at once when no script of its kind is under way; those that come until that one
//! has answered leave together after it. Each part of such a script does what it would do alone, in the order of the questions;
//! where Redis refuses it, all are asked again.

use std::{future::Future, sync::OnceLock};

use tokio::sync::{mpsc, oneshot};

use crate::ledger::LedgerError;

/// A script has so many parts at most: Redis does nothing else meanwhile.
const MOST_TOGETHER: usize = 64;
/// Questions that wait for a script to be begun.
const WAITING: usize = 64;

type Question<Q, A> = (Q, oneshot::Sender<Result<A, LedgerError>>);

/// Where questions of one kind are handed in.
pub(super) struct Together<Q, A>(OnceLock<mpsc::Sender<Question<Q, A>>>);

impl<Q, A> Default for Together<Q, A> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<Q: Send + 'static, A: Send + 'static> Together<Q, A> {
    /// Asks; `answer` makes whoever answers all of these questions, when the first is asked.
    pub(super) async fn ask<F, Fut>(&self, question: Q, answer: impl FnOnce() -> F) -> Result<A, LedgerError>
    where
        F: Fn(Vec<Q>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Vec<A>, LedgerError>> + Send + 'static,
    {
        let questions = self.0.get_or_init(|| {
            let (questions, handed_in) = mpsc::channel(WAITING);
            tokio::spawn(answer_all(handed_in, answer()));
            questions
        });
        let (told, is_told) = oneshot::channel();
        // Nobody listens only where the runtime is ending.
        questions.send((question, told)).await.map_err(|_| LedgerError::Aborted)?;
        is_told.await.map_err(|_| LedgerError::Aborted)?
    }
}

async fn answer_all<Q, A, F, Fut>(mut handed_in: mpsc::Receiver<Question<Q, A>>, answer: F)
where
    F: Fn(Vec<Q>) -> Fut,
    Fut: Future<Output = Result<Vec<A>, LedgerError>>,
{
    let mut waiting = Vec::new();
    while handed_in.recv_many(&mut waiting, MOST_TOGETHER).await > 0 {
        let (questions, told): (Vec<_>, Vec<_>) = waiting.drain(..).unzip();
        let answers = match answer(questions).await {
            Ok(answers) if answers.len() == told.len() => Ok(answers),
            Ok(_) => Err(LedgerError::Unreadable { what: "script's reply" }),
            Err(error) => Err(error),
        };
        // Who has been let go of meanwhile does not listen.
        match answers {
            Ok(answers) => told.into_iter().zip(answers).for_each(|(told, answer)| _ = told.send(Ok(answer))),
            Err(error) => told.into_iter().for_each(|told| _ = told.send(Err(error.clone()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn who_asks_alone_is_answered_at_once_and_the_others_together() {
        let together: Together<u32, u32> = Together::default();
        let (batches, open) = (Arc::new(Mutex::new(Vec::new())), Arc::new(tokio::sync::Semaphore::new(0)));
        let answer = || {
            let (batches, open) = (Arc::clone(&batches), Arc::clone(&open));
            move |questions: Vec<u32>| {
                let (batches, open) = (Arc::clone(&batches), Arc::clone(&open));
                async move {
                    batches.lock().unwrap().push(questions.len());
                    open.acquire().await.unwrap().forget();
                    Ok(questions.into_iter().map(|question| question * 2).collect())
                }
            }
        };
        let questions: Vec<_> = (0..200).map(|n| together.ask(n, answer)).collect();
        open.add_permits(5);
        let answers = join_all(questions).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
        assert_eq!(answers, (0..200).map(|n| n * 2).collect::<Vec<_>>());
        let batches = batches.lock().unwrap();
        assert!(batches.len() <= 5 && batches.iter().all(|batch| *batch <= MOST_TOGETHER), "{batches:?}");
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_to_all() {
        let together: Together<u32, u32> = Together::default();
        let answer = || |_: Vec<u32>| async { Err(LedgerError::Unreadable { what: "claim" }) };
        let told = join_all((0..3).map(|n| together.ask(n, answer))).await;
        assert!(told.iter().all(|told| matches!(told, Err(LedgerError::Unreadable { what: "claim" }))));
        let short: Together<u32, u32> = Together::default();
        let answer = || |_: Vec<u32>| async { Ok(Vec::new()) };
        assert!(short.ask(1, answer).await.is_err());
    }
}

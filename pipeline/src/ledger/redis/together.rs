//! What is asked at the same time is asked together: one script for all of them.
//!
//! Nobody waits for company. A question leaves at once when no script of its kind is under way; those that come until that one
//! has answered leave together after it. Each part of such a script does what it would do alone, in the order of the questions.
//!
//! Nobody waits for others' trouble, either. A script is tried once; where that fails (Redis is full, one part is too much or
//! cannot be read, the connection breaks) each of its questions is asked by itself until it is answered, and the next script
//! leaves.

use std::{future::Future, sync::Arc, sync::OnceLock};

use tokio::sync::{mpsc, oneshot};

use crate::ledger::LedgerError;

/// A script has so many parts at most: Redis does nothing else meanwhile.
const MOST_TOGETHER: usize = 64;
/// And so many bytes, but for its last part: they must arrive within a reply's patience.
const MOST_BYTES: usize = 1024 * 1024;
/// Questions that wait for a script to be begun.
const WAITING: usize = 64;

/// How a script is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Try {
    Once,
    UntilAnswered,
}

/// Something asked; its size is about that of what is sent for it.
pub(super) trait Question: Send + Sync + 'static {
    fn size_bytes(&self) -> usize;
}

type Asked<Q, A> = (Q, oneshot::Sender<Result<A, LedgerError>>);

/// Where questions of one kind are handed in.
pub(super) struct Together<Q, A>(OnceLock<mpsc::Sender<Asked<Q, A>>>);

impl<Q, A> Default for Together<Q, A> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<Q: Question, A: Send + 'static> Together<Q, A> {
    /// Asks; `answer` makes whoever answers questions, when the first is asked. `None`: nobody answers any more.
    pub(super) async fn ask<F, Fut>(
        &self,
        question: Q,
        answer: impl FnOnce() -> F,
    ) -> Option<Result<A, LedgerError>>
    where
        F: Fn(Arc<Vec<Q>>, Try) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<A>, LedgerError>> + Send + 'static,
    {
        let questions = self.0.get_or_init(|| {
            let (questions, handed_in) = mpsc::channel(WAITING);
            tokio::spawn(answer_all(handed_in, Arc::new(answer())));
            questions
        });
        let (told, is_told) = oneshot::channel();
        questions.send((question, told)).await.ok()?;
        is_told.await.ok()
    }
}

async fn answer_all<Q, A, F, Fut>(mut handed_in: mpsc::Receiver<Asked<Q, A>>, answer: Arc<F>)
where
    Q: Question,
    A: Send + 'static,
    F: Fn(Arc<Vec<Q>>, Try) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<A>, LedgerError>> + Send + 'static,
{
    while let Some(first) = handed_in.recv().await {
        let (mut questions, mut told, mut size_bytes) = (Vec::new(), Vec::new(), 0);
        let mut next = Some(first);
        while let Some((question, teller)) = next.take() {
            size_bytes += question.size_bytes();
            questions.push(question);
            told.push(teller);
            if questions.len() < MOST_TOGETHER && size_bytes < MOST_BYTES {
                next = handed_in.try_recv().ok();
            }
        }
        let questions = Arc::new(questions);
        match answer(Arc::clone(&questions), Try::Once).await {
            Ok(answers) if answers.len() == told.len() => {
                // Who has been let go of meanwhile does not listen.
                told.into_iter().zip(answers).for_each(|(teller, answer)| _ = teller.send(Ok(answer)));
            }
            Ok(_) | Err(_) => {
                let questions = Arc::into_inner(questions).unwrap_or_default();
                for (question, teller) in questions.into_iter().zip(told) {
                    let answer = Arc::clone(&answer);
                    tokio::spawn(async move {
                        let answered = answer(Arc::new(vec![question]), Try::UntilAnswered).await;
                        let one = |mut answers: Vec<A>| {
                            answers.pop().ok_or(LedgerError::Unreadable { what: "script's reply" })
                        };
                        let _ = teller.send(answered.and_then(one));
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    impl Question for usize {
        fn size_bytes(&self) -> usize {
            if *self >= 1_000 { MOST_BYTES } else { 0 }
        }
    }

    /// Doubles what it is asked, where it may; notes how many were asked together, and how.
    #[derive(Clone, Default)]
    struct Doubler {
        scripts: Arc<Mutex<Vec<(usize, Try)>>>,
        refused: Option<usize>,
    }

    impl Doubler {
        async fn answer(self, questions: Arc<Vec<usize>>, how: Try) -> Result<Vec<usize>, LedgerError> {
            self.scripts.lock().unwrap().push((questions.len(), how));
            tokio::task::yield_now().await;
            if questions.iter().any(|question| Some(*question) == self.refused) {
                return Err(LedgerError::Unreadable { what: "claim" });
            }
            Ok(questions.iter().map(|question| question * 2).collect())
        }

        async fn ask_all(&self, questions: impl Iterator<Item = usize>) -> Vec<Result<usize, LedgerError>> {
            let together: Together<usize, usize> = Together::default();
            let answer = || {
                let doubler = self.clone();
                move |questions, how| doubler.clone().answer(questions, how)
            };
            join_all(questions.map(|n| together.ask(n, answer)))
                .await
                .into_iter()
                .map(Option::unwrap)
                .collect()
        }

        fn scripts(&self) -> Vec<(usize, Try)> {
            self.scripts.lock().unwrap().clone()
        }
    }

    #[tokio::test]
    async fn what_is_asked_at_once_is_answered_in_few_scripts_each_to_who_asked() {
        let doubler = Doubler::default();
        let answers: Vec<_> = doubler.ask_all(0..200).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (0..200).map(|n| n * 2).collect::<Vec<_>>());
        let scripts = doubler.scripts();
        assert!(
            scripts.len() < 20 && scripts.iter().all(|(parts, _)| *parts <= MOST_TOGETHER),
            "{scripts:?}"
        );
    }

    #[tokio::test]
    async fn what_is_large_is_asked_with_few_others() {
        let doubler = Doubler::default();
        doubler.ask_all(1_000..1_010).await;
        assert_eq!(doubler.scripts(), [(1, Try::Once); 10]);
    }

    #[tokio::test]
    async fn trouble_of_one_is_nobody_elses() {
        let doubler = Doubler { refused: Some(7), ..Doubler::default() };
        let answers = doubler.ask_all(0..30).await;
        assert!(matches!(answers[7], Err(LedgerError::Unreadable { what: "claim" })));
        assert!(answers.iter().enumerate().all(|(n, answer)| n == 7 || answer.as_ref().unwrap() == &(n * 2)));
        assert!(doubler.scripts().contains(&(1, Try::UntilAnswered)));
    }

    #[tokio::test]
    async fn who_is_stuck_holds_up_nobody() {
        let together: Together<usize, usize> = Together::default();
        let open = Arc::new(Semaphore::new(0));
        let answer = || {
            let open = Arc::clone(&open);
            move |questions: Arc<Vec<usize>>, how| {
                let open = Arc::clone(&open);
                async move {
                    if questions.contains(&7) {
                        if how == Try::Once {
                            return Err(LedgerError::Unreadable { what: "claim" });
                        }
                        open.acquire().await.unwrap().forget();
                    }
                    Ok(questions.iter().map(|question| question * 2).collect())
                }
            }
        };
        let mut stuck = Box::pin(together.ask(7, answer));
        assert!(futures_util::poll!(&mut stuck).is_pending());
        assert_eq!(together.ask(8, answer).await.unwrap().unwrap(), 16);
        open.add_permits(1);
        assert_eq!(stuck.await.unwrap().unwrap(), 14);
    }
}

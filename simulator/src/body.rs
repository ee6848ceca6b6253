//! Response bodies that know what became of them.
//!
//! An answer and its tokens count when the socket takes it, not when it is made: a client that left in between was not
//! answered.
//! A cut-off body announces its full length, sends part of it, waits until that part is on the wire, and breaks.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::stats::{Call, Usage};

pub(crate) struct ReplyBody {
    bytes: Bytes,
    /// Ends when the body has been taken, or is dropped with it.
    call: Option<Call>,
    /// What the body says of itself; nothing, for all but completions.
    usage: Usage,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Whole,
    Answer,
    CutOff,
    /// Of a cut-off body: the part is taken, to be flushed before the connection breaks.
    Flushing,
    Breaking,
    Sent,
}

/// Makes hyper drop the connection.
#[derive(Debug)]
pub(crate) struct CutOff;

impl std::fmt::Display for CutOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut off on purpose")
    }
}

impl std::error::Error for CutOff {}

impl ReplyBody {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self { bytes, call: None, usage: Usage::default(), stage: Stage::Whole }
    }

    /// Complete and valid: counts as an answer to `call` once it is sent.
    pub(crate) fn answer(bytes: Bytes, usage: Usage, call: Call) -> Self {
        Self { bytes, call: Some(call), usage, stage: Stage::Answer }
    }

    /// A completion that is no answer, but billed all the same.
    pub(crate) fn spoiled(bytes: Bytes, usage: Usage, call: Call) -> Self {
        Self { bytes, call: Some(call), usage, stage: Stage::Whole }
    }

    pub(crate) fn cut_off(bytes: Bytes, usage: Usage, call: Call) -> Self {
        Self { bytes, call: Some(call), usage, stage: Stage::CutOff }
    }

    /// Keeps the call in flight until the body is sent.
    pub(crate) fn holding(mut self, call: Call) -> Self {
        self.call = Some(call);
        self
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        match self.stage {
            Stage::Whole | Stage::Answer => {
                if let Some(call) = self.call.take() {
                    call.billed(self.usage);
                    if self.stage == Stage::Answer {
                        call.answered();
                    }
                }
                self.stage = Stage::Sent;
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.bytes)))))
            }
            Stage::CutOff => {
                if let Some(call) = &self.call {
                    call.billed_unseen(self.usage);
                }
                self.stage = Stage::Flushing;
                let half = self.bytes.len() / 2;
                Poll::Ready(Some(Ok(Frame::data(self.bytes.split_to(half)))))
            }
            Stage::Flushing => {
                self.stage = Stage::Breaking;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Stage::Breaking => {
                self.call = None;
                self.stage = Stage::Sent;
                Poll::Ready(Some(Err(CutOff)))
            }
            Stage::Sent => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stage == Stage::Sent || self.stage == Stage::Whole && self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}

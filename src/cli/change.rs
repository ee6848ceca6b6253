//! How products that are put back are to be asked otherwise. The variables have names of their own: one that is set for
//! `run` must not change what `requeue` asks.

use std::time::Duration;

use clap::Args;
use shelfmill_pipeline::{
    changes::{Changes, Temperature},
    job::Prices,
};

pub(crate) const REQUEUE_HELP: &str = "\
Examples:
  shelfmill requeue                                          all that failed, once more as the job says
  shelfmill requeue --class truncated --max-output-tokens 4096
  shelfmill requeue --class malformed,schema_violation --model gpt-4.1
  shelfmill requeue --class timeout --timeout 3m --run spring
  shelfmill requeue --id SM-17 --model my-model --prices 0.40,1.60

What is changed is changed for the products that are put back, until each of them is completed or has failed again. Put \
back once more, a product is asked as that command says: without options as the job says. With several endpoints the other \
model is asked at each of them. Workers of a version that knows no changes set such tasks aside: update them first.";

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Changes, for the products that are put back")]
pub(crate) struct ChangeArgs {
    /// Ask another model.
    #[arg(long, value_name = "NAME", env = "SHELFMILL_REQUEUE_MODEL")]
    model: Option<String>,
    /// What that model costs, in US dollars per million tokens read and written, such as 0.40,1.60 [default: as the job or the
    /// table of known prices says].
    #[arg(long, value_name = "READ,WRITTEN", env = "SHELFMILL_REQUEUE_PRICES", value_parser = prices, requires = "model")]
    prices: Option<Prices>,
    /// Let answers be so long; one that is cut off there is asked for once more with twice as much.
    #[arg(long, value_name = "TOKENS", env = "SHELFMILL_REQUEUE_MAX_OUTPUT_TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    max_output_tokens: Option<u32>,
    /// Let a call take so long, such as 3m.
    #[arg(long, value_name = "DURATION", env = "SHELFMILL_REQUEUE_TIMEOUT", value_parser = super::duration)]
    timeout: Option<Duration>,
    /// Another temperature, from 0 to 2; `default` sends none.
    #[arg(long, value_name = "TEMPERATURE", env = "SHELFMILL_REQUEUE_TEMPERATURE", value_parser = temperature)]
    temperature: Option<Temperature>,
}

impl ChangeArgs {
    /// What is to be changed; what of it is nonsense.
    pub(crate) fn changes(&self) -> Result<Changes, String> {
        let changes = Changes {
            model: self.model.clone(),
            prices: self.prices,
            max_output_tokens: self.max_output_tokens,
            timeout_ms: self.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            temperature: self.temperature,
        };
        changes.check().map_err(|error| error.to_string())?;
        Ok(changes)
    }
}

fn prices(text: &str) -> Result<Prices, String> {
    let price = |text: &str| text.trim().parse::<f64>().ok();
    text.split_once(',')
        .and_then(|(prompt, completion)| {
            Some(Prices { prompt_per_million: price(prompt)?, completion_per_million: price(completion)? })
        })
        .ok_or_else(|| {
            "prices are written like 0.40,1.60: US dollars per million tokens read and written".to_owned()
        })
}

fn temperature(text: &str) -> Result<Temperature, String> {
    match text {
        "default" => Ok(Temperature::Default),
        number => number
            .parse()
            .map(Temperature::Of)
            .map_err(|_| "a temperature is a number from 0 to 2, or \"default\"".to_owned()),
    }
}

//! Removing the queues of a run, for good.

use lapin::options::QueueDeleteOptions;

use super::{
    RabbitBroker,
    connection::Trouble,
    declare::{is_not_found, queue_trouble},
    outage::Purpose,
};
use crate::broker::BrokerError;

impl RabbitBroker {
    /// Deletes every queue of the run with what is in it; how many messages that were. What is not there is no error.
    pub async fn purge(&self) -> Result<u64, BrokerError> {
        let topology = &self.shared.topology;
        let queues =
            [&topology.tasks, &topology.outcomes, &topology.dead].into_iter().chain(&topology.retries);
        let mut messages = 0;
        for queue in queues {
            // One connection each: a channel is closed by the first question about a queue that is not there.
            let link = self.shared.open(Purpose::Look).await?;
            match link.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await {
                Ok(deleted) => messages += u64::from(deleted),
                Err(error) if is_not_found(&error) => {}
                Err(error) => {
                    return Err(match queue_trouble(queue, error) {
                        Trouble::Permanent(error) => error,
                        Trouble::Passing(error) => {
                            BrokerError::Unreachable { at: self.shared.at.clone(), reason: error.to_string() }
                        }
                    });
                }
            }
        }
        Ok(messages)
    }
}

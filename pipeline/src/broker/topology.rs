//! The queues of a run: their names, arguments, and which delay a retry gets.
//!
//! Queue arguments cannot change once a queue exists, hence the `v1` in every name: a change below is a new
//! version. Tasks that exceed the delivery limit, and nothing else, are dead-lettered by RabbitMQ itself.

use std::time::Duration;

/// Deliveries after which a task that no worker settles is dead-lettered.
pub(super) const DELIVERY_LIMIT: i64 = 20;

/// The delays there are; each has a queue of its own, since RabbitMQ expires messages from the head only.
pub(super) const DELAYS: [(&str, Duration); 4] = [
    ("5s", Duration::from_secs(5)),
    ("30s", Duration::from_secs(30)),
    ("2m", Duration::from_secs(120)),
    ("10m", Duration::from_secs(600)),
];

/// The queues of one run.
#[derive(Clone, Debug)]
pub(super) struct Topology {
    pub(super) tasks: String,
    pub(super) outcomes: String,
    pub(super) dead: String,
    pub(super) retries: [String; DELAYS.len()],
}

impl Topology {
    pub(super) fn of(run: &str) -> Self {
        let name = |what: &str| format!("shelfmill.{run}.{what}.v1");
        Self {
            tasks: name("tasks"),
            outcomes: name("outcomes"),
            dead: name("dead"),
            retries: DELAYS.map(|(delay, _)| name(&format!("retry.{delay}"))),
        }
    }

    /// The queue that holds a task for about `delay`: none for no delay, else the shortest that is not shorter.
    pub(super) fn queue_for(&self, delay: Duration) -> &str {
        if delay.is_zero() {
            return &self.tasks;
        }
        let long_enough = DELAYS.iter().position(|(_, held)| *held >= delay);
        &self.retries[long_enough.unwrap_or(DELAYS.len() - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_waits_at_least_as_long_as_asked_where_there_is_such_a_queue() {
        let topology = Topology::of("spring");
        let queue = |seconds| topology.queue_for(Duration::from_secs(seconds)).to_owned();
        assert_eq!(queue(0), "shelfmill.spring.tasks.v1");
        assert_eq!(queue(1), "shelfmill.spring.retry.5s.v1");
        assert_eq!(queue(5), "shelfmill.spring.retry.5s.v1");
        assert_eq!(queue(6), "shelfmill.spring.retry.30s.v1");
        assert_eq!(queue(601), "shelfmill.spring.retry.10m.v1");
    }
}

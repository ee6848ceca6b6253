//! Somebody else's messages: what no role of ours would publish.

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};

/// Publishes these bytes with these headers, confirmed.
pub(crate) fn publish(url: &str, queue: &str, body: &[u8], headers: &[(&str, &str)]) {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    let properties = BasicProperties::default().with_headers(table);
    let publish = async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm =
            channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await?;
        Ok::<_, lapin::Error>(confirm)
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let confirm = runtime.block_on(publish).expect("RabbitMQ takes a message");
    assert!(matches!(confirm, lapin::Confirmation::Ack(None)), "not routed: {confirm:?}");
}

/// Keeps others from what is in a queue with a single active consumer, until it is dropped.
pub(crate) struct Holder {
    runtime: tokio::runtime::Runtime,
    connection: Option<(Connection, lapin::Consumer)>,
}

/// Becomes the one consumer of a queue, and settles nothing.
pub(crate) fn hold(url: &str, queue: &str) -> Holder {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let consume = async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(1, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(queue.into(), "holder".into(), options, FieldTable::default()).await?;
        Ok::<_, lapin::Error>((connection, consumer))
    };
    let connection = Some(runtime.block_on(consume).expect("RabbitMQ takes a consumer"));
    Holder { runtime, connection }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some((connection, consumer)) = self.connection.take() {
            drop(consumer);
            let _ = self.runtime.block_on(connection.close(200, "held long enough".into()));
        }
    }
}

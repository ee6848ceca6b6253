//! Somebody else's messages: what no role of ours would publish.

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
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

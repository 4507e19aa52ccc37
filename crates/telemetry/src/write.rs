//! Single values and families, written as they are read.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{TypedMetric, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// Writes a gauge without labels.
///
/// # Errors
/// If the encoder cannot write.
pub fn gauge<V>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: V,
) -> fmt::Result
where
    ConstGauge<V>: EncodeMetric + TypedMetric,
{
    single(encoder, (name, help, unit), &ConstGauge::new(value))
}

/// Writes a counter without labels.
///
/// # Errors
/// If the encoder cannot write.
pub fn counter<V>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: V,
) -> fmt::Result
where
    ConstCounter<V>: EncodeMetric + TypedMetric,
{
    single(encoder, (name, help, unit), &ConstCounter::new(value))
}

fn single<M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Option<&Unit>),
    value: &M,
) -> fmt::Result {
    value.encode(encoder.encode_descriptor(name, help, unit, M::TYPE)?)
}

/// Writes one metric, by its name, help and unit, with a value for each set of labels.
///
/// # Errors
/// If the encoder cannot write.
pub fn family<L: EncodeLabelSet, M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Option<&Unit>),
    values: impl IntoIterator<Item = (L, M)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, unit, M::TYPE)?;
    for (labels, value) in values {
        value.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

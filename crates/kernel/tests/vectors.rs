//! The kernel's arithmetic against numbers that another program computed: see testdata/statistics.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use evidenceos_kernel::bits::MicroBits;
use evidenceos_kernel::log2::{
    log2_fixed40_down, log2_fixed40_up, log2_microbits_down, log2_microbits_up,
};
use evidenceos_kernel::price::{AnswerPrices, PriceError};
use serde_json::Value;

fn vectors(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/statistics")
        .join(name);
    let bytes = fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    serde_json::from_slice(&bytes).expect("a vector file is an array")
}

#[test]
fn every_logarithm_is_rounded_truly_in_both_directions() {
    for vector in vectors("log2.json") {
        let integer = |key: &str| -> u128 {
            let text = vector[key].as_str().expect("a decimal string");
            text.parse().expect("at most 128 bits")
        };
        let end = |key: &str, at: usize| vector[key][at].as_i64().expect("an integer");
        let (num, den) = (integer("num"), integer("den"));
        assert_eq!(
            log2_fixed40_down(num, den),
            end("fixed40", 0),
            "{num}/{den}"
        );
        assert_eq!(log2_fixed40_up(num, den), end("fixed40", 1), "{num}/{den}");
        if num >= den {
            let microbits = |at| MicroBits(end("microbits", at) as u64);
            assert_eq!(log2_microbits_down(num, den), microbits(0), "{num}/{den}");
            assert_eq!(log2_microbits_up(num, den), microbits(1), "{num}/{den}");
        }
    }
}

#[test]
fn a_brimful_price_list_is_valid_and_one_microbit_less_is_not() {
    for list in vectors("kraft.json") {
        let list = list.as_array().expect("a list of prices");
        let price = |price: &Value| MicroBits(price.as_u64().expect("microbits"));
        let mut prices: Vec<MicroBits> = list.iter().map(price).collect();
        let n_symbols = prices.len() as u32;
        let validate = |prices: &[MicroBits]| {
            AnswerPrices(BTreeMap::from([(n_symbols, prices.to_vec())])).validate()
        };
        assert_eq!(validate(&prices), Ok(()), "{list:?}");
        if let Some(last) = prices.last_mut() {
            *last = MicroBits(last.get() - 1);
        }
        assert_eq!(
            validate(&prices),
            Err(PriceError::Kraft { n_symbols }),
            "{list:?}"
        );
    }
}

//! Tables and round trips for canonical JSON.

use proptest::prelude::*;

use super::*;

const LIMIT: usize = 64 * 1024;

#[test]
fn canonical_bytes_come_back_unchanged() {
    for canonical in [
        "true",
        "false",
        "0",
        "9007199254740991",
        r#""""#,
        r#""plain""#,
        r#""\b\t\n\f\r\"\\/""#,
        r#""\u0000\u001f""#,
        "\"\u{7f}\u{e9}\u{20ac}\u{1f600}\"",
        "[]",
        "{}",
        "[1,[2,{}],\"x\"]",
        r#"{"0":1,"_":2,"a":3,"a_b":4,"aa":5}"#,
    ] {
        let value = parse(canonical.as_bytes(), LIMIT).expect("canonical");
        assert_eq!(value.to_bytes(), canonical.as_bytes(), "{canonical}");
    }
}

#[test]
fn any_other_bytes_are_refused_where_they_go_astray() {
    let check = |bytes: &[u8], offset, rule| {
        let shown = String::from_utf8_lossy(bytes);
        assert_eq!(
            parse(bytes, LIMIT),
            Err(CjError { offset, rule }),
            "{shown}"
        );
    };
    check(b"", 0, CjRule::Truncated);
    check(b" 1", 0, CjRule::Value);
    check(b"1 ", 1, CjRule::Trailing);
    check(b"null", 0, CjRule::Value);
    check(b"nul", 0, CjRule::Value);
    check(b"truth", 0, CjRule::Value);
    check(b"-1", 0, CjRule::Value);
    check(b"-0", 0, CjRule::Value);
    check(b"00", 2, CjRule::Number);
    check(b"01", 2, CjRule::Number);
    check(b"1.0", 1, CjRule::Number);
    check(b"1e3", 1, CjRule::Number);
    check(b"9007199254740992", 15, CjRule::Range);
    check(b"99999999999999999999999999", 15, CjRule::Range);
    check(b"[1,]", 3, CjRule::Value);
    check(b"[1 ,2]", 2, CjRule::Punctuation);
    check(b"[1", 2, CjRule::Truncated);
    check(br#"{"a":1,}"#, 7, CjRule::Punctuation);
    check(br#"{"a": 1}"#, 5, CjRule::Value);
    check(br#"{"a":1,"a":1}"#, 7, CjRule::Order);
    check(br#"{"b":1,"a":1}"#, 7, CjRule::Order);
    check(br#"{"A":1}"#, 2, CjRule::Key);
    check(br#"{"":1}"#, 2, CjRule::Key);
    check(br#"{"\u0061":1}"#, 2, CjRule::Key);
    check(br#""\/""#, 1, CjRule::Escape);
    check(br#""\u0061""#, 1, CjRule::Escape);
    check(br#""\u000a""#, 1, CjRule::Escape);
    check(br#""\u001F""#, 1, CjRule::Escape);
    check(b"\"\n\"", 1, CjRule::Escape);
    check(b"\"a\xff\"", 2, CjRule::Utf8);
    check(b"\"\xed\xa0\x80\"", 1, CjRule::Utf8);
    check(b"\"open", 5, CjRule::Truncated);
}

#[test]
fn nesting_and_size_are_bounded() {
    let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    assert!(parse(&nested(MAX_DEPTH + 1), LIMIT).is_ok());
    let (offset, rule) = (MAX_DEPTH + 1, CjRule::Depth);
    let refused = Err(CjError { offset, rule });
    assert_eq!(parse(&nested(MAX_DEPTH + 2), LIMIT), refused);
    assert_eq!(parse(&nested(20_000), LIMIT), refused);
    let objects = |depth: usize| {
        let open = br#"{"a":"#.repeat(depth);
        [open, b"0".to_vec(), vec![b'}'; depth]].concat()
    };
    assert!(parse(&objects(MAX_DEPTH), LIMIT).is_ok());
    let (offset, rule) = (5 * (MAX_DEPTH + 1), CjRule::Depth);
    let refused = Err(CjError { offset, rule });
    assert_eq!(parse(&objects(MAX_DEPTH + 1), LIMIT), refused);
    assert_eq!(parse(b"123", 3), Ok(Value::Int(123)));
    let (offset, rule) = (3, CjRule::Size);
    assert_eq!(parse(b"1234", 3), Err(CjError { offset, rule }));
}

#[test]
fn a_value_is_read_as_what_it_is_and_as_nothing_else() {
    let object = Object::new().put("a", 1u8).put("b", 2u8);
    let elements = vec![Value::Int(3), Value::Bool(true)];
    let values = [
        Value::Int(7),
        Value::Bool(true),
        Value::Bool(false),
        Value::Array(elements.clone()),
        Value::Object(object.clone()),
    ];
    let ints = values.each_ref().map(Value::as_int);
    assert_eq!(ints, [Some(7), None, None, None, None]);
    let bools = values.each_ref().map(Value::as_bool);
    assert_eq!(bools, [None, Some(true), Some(false), None, None]);
    let arrays = values.each_ref().map(Value::as_array);
    assert_eq!(arrays, [None, None, None, Some(&*elements), None]);
    let objects = values.each_ref().map(Value::as_object);
    assert_eq!(objects, [None, None, None, None, Some(&object)]);
    let (len, empty) = (object.len(), object.is_empty());
    assert_eq!((len, empty), (2, false));
    let none = Object::new();
    assert_eq!((none.len(), none.is_empty()), (0, true));
}

#[test]
fn fields_are_written_in_the_order_of_their_keys() {
    let object = Object::new()
        .put("levels", 0u8)
        .put("alpha_micros", 50_000u32)
        .put_some("expires_unix", None::<u64>)
        .put("reason_codes", vec!["a", "b"])
        .put("items", Object::new().put("sealed", 8u64));
    let bytes = object.to_bytes();
    assert_eq!(
        String::from_utf8_lossy(&bytes),
        r#"{"alpha_micros":50000,"items":{"sealed":8},"levels":0,"reason_codes":["a","b"]}"#
    );
    assert_eq!(parse(&bytes, LIMIT), Ok(Value::Object(object)));
}

#[test]
#[should_panic(expected = "at most 2^53 - 1")]
fn an_integer_that_readers_would_round_is_not_written() {
    let _ = Value::Int(MAX_INT + 1).to_bytes();
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        (0..=MAX_INT).prop_map(Value::Int),
        any::<String>().prop_map(Value::Str),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        let keys = prop::collection::vec(prop::sample::select(b"abz09_".to_vec()), 1..6);
        let key = keys.prop_map(|key| Cow::Owned(key.into_iter().map(char::from).collect()));
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
            prop::collection::btree_map(key, inner, 0..8)
                .prop_map(|fields| Value::Object(Object(fields))),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(value in values()) {
        prop_assert_eq!(parse(&value.to_bytes(), usize::MAX), Ok(value));
    }

    #[test]
    fn what_is_read_is_what_would_be_written(
        value in values(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = value.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(other) = parse(&bytes, usize::MAX) {
            prop_assert_eq!(other.to_bytes(), bytes);
        }
    }

    #[test]
    fn no_bytes_make_the_parser_panic(
        bytes in prop::collection::vec(prop::sample::select(b"{}[]\",:01ab\\ut \x00\xc3".to_vec()), 0..40),
    ) {
        if let Ok(value) = parse(&bytes, usize::MAX) {
            prop_assert_eq!(value.to_bytes(), bytes);
        }
    }
}

#[test]
fn a_writer_makes_the_bytes_of_an_object() {
    let written = Writer::with_capacity(8)
        .hex("a_hex", &[0x00, 0xab])
        .hex_if("b_hex", None::<[u8; 1]>)
        .int("n", MAX_INT)
        .str("text", "a \"b\"\n\u{1}\u{e9}")
        .to_bytes();
    let object = Object::new()
        .put("text", "a \"b\"\n\u{1}\u{e9}")
        .put("n", MAX_INT)
        .put("a_hex", "00ab");
    assert_eq!(written, object.to_bytes());
    assert_eq!(
        Writer::with_capacity(0).to_bytes(),
        Object::new().to_bytes()
    );
}

#[test]
#[should_panic(expected = "\"a\" comes before \"b\"")]
fn a_writer_takes_keys_in_their_order_alone() {
    let _ = Writer::with_capacity(8).int("b", 1).int("a", 2);
}

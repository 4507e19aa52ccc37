//! Entries of every kind against the bytes that earlier releases wrote.

use super::*;

/// Entries of every kind; `testdata/entries/README.md` says how they were made.
const GOLDEN: &str = include_str!("../../../../testdata/entries/entries.jsonl");

#[test]
fn every_kind_is_read_from_its_golden_bytes_and_written_the_same_again() {
    let mut kinds = Vec::new();
    for line in GOLDEN.lines() {
        let entry = Entry::parse(line.as_bytes()).expect(line);
        assert_eq!(String::from_utf8(entry.to_bytes()).expect("JSON"), line);
        kinds.extend(Kind::of(line.as_bytes()));
    }
    kinds.dedup();
    assert_eq!(kinds, Kind::ALL);
}

#[test]
fn an_entry_is_read_as_its_own_kind_only_and_with_its_own_fields_only() {
    for line in GOLDEN.lines() {
        let own = Kind::of(line.as_bytes()).expect(line);
        for other in Kind::ALL.iter().filter(|kind| **kind != own) {
            let renamed = line.replace(own.schema(), other.schema());
            assert!(Entry::parse(renamed.as_bytes()).is_err(), "{renamed}");
        }
        for (at, _) in line.match_indices('}') {
            let longer = format!("{},\"zz\":1{}", &line[..at], &line[at..]);
            assert!(Entry::parse(longer.as_bytes()).is_err(), "{longer}");
        }
    }
}

#[test]
fn a_registration_bears_the_id_of_its_bytes() {
    for line in GOLDEN.lines() {
        if let Ok(Entry::HoldoutRegistered(read)) = Entry::parse(line.as_bytes()) {
            let (name, time) = (read.reference.clone(), read.registered_unix_ms);
            let written = Registered::new(name, read.description.clone(), time);
            assert_eq!(written, read);
        }
    }
}

#[test]
fn what_is_no_entry_is_told_from_an_entry_of_an_unknown_kind() {
    let check = |bytes: &[u8], expected: fn(&RecordError) -> bool| {
        let error = Entry::parse(bytes).expect_err("no entry");
        assert!(expected(&error), "{error}");
        assert_eq!(Kind::of(bytes), None);
    };
    let unknown = br#"{"schema":"evidenceos.v2.weather"}"#;
    check(
        unknown,
        |e| matches!(e, RecordError::Kind(schema) if schema == "evidenceos.v2.weather"),
    );
    check(
        b"{}",
        |e| matches!(e, RecordError::Field(field) if field == "schema"),
    );
    check(br#"{"schema":1}"#, |e| matches!(e, RecordError::Field(_)));
    check(b"[]", |e| matches!(e, RecordError::Field(_)));
    check(br#"{ "schema":"evidenceos.v2.log_started"}"#, |e| {
        matches!(e, RecordError::Json(_))
    });
}

#[test]
fn an_entry_charges_what_it_says() {
    let mut charging = 0;
    for line in GOLDEN.lines() {
        let entry = Entry::parse(line.as_bytes()).expect(line);
        let json: serde_json::Value = serde_json::from_str(line).expect(line);
        let int = |path: &str| json.pointer(path).and_then(serde_json::Value::as_u64);
        let answers = int("/answers/charged_microbits").or(int("/answers_microbits"));
        let sealed = int("/ledger/price_microbits").or(int("/sealed_microbits"));
        let charge = entry.charge();
        charging += usize::from(charge.is_some());
        let said = charge.map(|charge| (charge.answers.get(), charge.sealed.get()));
        assert_eq!(said, answers.zip(sealed), "{line}");
    }
    assert_eq!(charging, 6);
}

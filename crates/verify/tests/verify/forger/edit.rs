//! Canonical JSON as a tree that can be changed anywhere, and every small change of it.

use serde_json::{Value, json};

/// An entry as a tree.
pub(crate) fn read(entry: &[u8]) -> Value {
    serde_json::from_slice(entry).expect("entries are JSON")
}

/// The canonical bytes of a tree.
pub(crate) fn write(value: &Value) -> Vec<u8> {
    let mut out = String::new();
    write_into(value, &mut out);
    out.into_bytes()
}

fn write_into(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort();
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&format!("\"{key}\":"));
                write_into(&fields[key], out);
            }
            out.push('}');
        }
        Value::Array(elements) => {
            out.push('[');
            for (i, element) in elements.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_into(element, out);
            }
            out.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push_str(&value.to_string());
        }
    }
}

/// One small change: where, what, and the value there afterwards (none: the key is taken out).
#[derive(Debug, Clone)]
pub(super) struct Edit {
    /// A JSON pointer.
    pub(super) pointer: String,
    /// The field in the notation of the documentation: keys with dots, without places in arrays.
    pub(super) field: String,
    pub(super) what: &'static str,
    pub(super) value: Option<Value>,
}

impl Edit {
    pub(super) fn new(pointer: &str, what: &'static str, value: Option<Value>) -> Self {
        let keys = pointer.split('/').skip(1);
        let named: Vec<&str> = keys
            .filter(|key| !key.bytes().all(|byte| byte.is_ascii_digit()))
            .collect();
        Self {
            pointer: pointer.to_owned(),
            field: named.join("."),
            what,
            value,
        }
    }

    /// Whether it is about the form of a record, and not about what it says.
    pub(super) fn is_about_form(&self) -> bool {
        let nested = self.pointer.matches('/').count() > 1;
        match self.what {
            "unknown" | "very much" | "no text" => true,
            "nothing" => !matches!(
                self.field.as_str(),
                "ledger.price_microbits" | "fuel" | "run.levels" | "answers.charged_microbits"
            ),
            "taken out" => nested || self.field != "e_value_log2" && self.field != "fresh_items",
            _ => self.field == "schema",
        }
    }

    /// The tree with the change.
    pub(super) fn apply(&self, tree: &Value) -> Value {
        let mut changed = tree.clone();
        let (parent, key) = self.pointer.rsplit_once('/').expect("a pointer");
        let parent = changed.pointer_mut(parent);
        match (parent, &self.value) {
            (Some(Value::Object(fields)), Some(value)) => {
                fields.insert(key.to_owned(), value.clone());
            }
            (Some(Value::Object(fields)), None) => {
                fields.remove(key);
            }
            (Some(Value::Array(elements)), Some(value)) => {
                let at: usize = key.parse().expect("a place");
                if let Some(place) = elements.get_mut(at) {
                    *place = value.clone();
                }
            }
            _ => {}
        }
        changed
    }
}

/// Every small change of an entry: of each value, each list and each key.
pub(super) fn edits(tree: &Value) -> Vec<Edit> {
    let mut found = Vec::new();
    walk("", tree, &mut found);
    // Keys that some entry of the kind may have, and this one has not.
    for (key, value) in optional_keys(tree) {
        if tree.get(key).is_none() {
            found.push(Edit::new(&format!("/{key}"), "added", Some(value)));
        }
    }
    found.push(Edit::new("/zzz", "unknown", Some(json!(1))));
    found
}

fn walk(pointer: &str, value: &Value, found: &mut Vec<Edit>) {
    let mut edit = |what, value| found.push(Edit::new(pointer, what, value));
    match value {
        Value::Number(number) => {
            let number = number.as_u64().expect("integers only");
            let others = [
                ("one more", Some(number + 1)),
                ("one less", number.checked_sub(1)),
                ("nothing", Some(0)),
                ("very much", Some((1 << 53) - 1)),
            ];
            for (what, other) in others {
                if let Some(other) = other.filter(|&other| other != number && other < 1 << 53) {
                    edit(what, Some(json!(other)));
                }
            }
        }
        Value::Bool(flag) => edit("the opposite", Some(json!(!flag))),
        Value::String(text) => {
            for (what, other) in other_texts(text) {
                edit(what, Some(json!(other)));
            }
        }
        Value::Array(elements) => {
            let mut other = elements.clone();
            if other.pop().is_some() {
                edit("without the last", Some(json!(other)));
            }
            let mut other = elements.clone();
            other.push(elements.last().cloned().unwrap_or(json!("00".repeat(32))));
            edit("with one more", Some(json!(other)));
            if elements.len() > 1 {
                let mut other = elements.clone();
                other.swap(0, 1);
                if other != *elements {
                    edit("in another order", Some(json!(other)));
                }
            }
            for (i, element) in elements.iter().enumerate().take(4) {
                walk(&format!("{pointer}/{i}"), element, found);
            }
        }
        Value::Object(fields) => {
            for (key, element) in fields {
                let below = format!("{pointer}/{key}");
                found.push(Edit::new(&below, "taken out", None));
                walk(&below, element, found);
            }
        }
        Value::Null => {}
    }
}

/// Words of which a field may have another one.
const WORDS: [&[&str]; 6] = [
    &["certified", "not_certified", "not_judged", "aborted"],
    &["each", "fwer", "fdr"],
    &["learned", "fixed"],
    &["stated", "exhausted"],
    &["grid", "fixed_alternative"],
    &["new_key", "anchor", "operator"],
];

fn other_texts(text: &str) -> Vec<(&'static str, String)> {
    if let Some(words) = WORDS.iter().find(|words| words.contains(&text)) {
        let others = words.iter().filter(|word| **word != text);
        return others
            .map(|word| ("another word", (*word).to_owned()))
            .collect();
    }
    let is_hex = text.len() >= 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex {
        let first = if text.starts_with('0') { "1" } else { "0" };
        return vec![("other bytes", format!("{first}{}", &text[1..]))];
    }
    vec![
        ("another text", format!("{text}x")),
        ("no text", String::new()),
    ]
}

fn optional_keys(tree: &Value) -> Vec<(&'static str, Value)> {
    let hash = || json!("12".repeat(32));
    match tree["schema"].as_str().unwrap_or_default() {
        "evidenceos.v2.log_started" => vec![("begun_by", json!("operator"))],
        "evidenceos.v2.holdout_registered" => vec![
            ("fresh_items", json!(true)),
            ("replaces_hex", hash()),
            ("item_order_hash_hex", hash()),
        ],
        "evidenceos.v2.claim_capsule" => {
            vec![("e_value_log2", json!(4)), ("duplicate_of_hex", hash())]
        }
        "evidenceos.v2.holdout_policy" => vec![
            ("sealed_budget_microbits", json!(90_000_000)),
            ("principal_answer_budget_microbits", json!(9_000_000)),
            ("credit_budget", json!(5)),
        ],
        "evidenceos.v2.log_restarted" => vec![("known_size", json!(99))],
        _ => Vec::new(),
    }
}

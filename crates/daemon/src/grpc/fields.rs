//! Counts the fields of a request's messages while they arrive, before they are decoded.
//!
//! A message without content takes two bytes on the wire and about eighty once it is decoded: eight
//! megabytes of them would become hundreds. No call has a message with more than a few hundred
//! fields at its top level. A message with more ends the body before the decoder sees the rest.
//!
//! Spec: gRPC over HTTP/2, length-prefixed messages; Protocol Buffers, encoding.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prost::bytes::Bytes;
use tonic::{Status, body::Body};

use super::status;

/// The most fields at the top level of one message. The largest list is the artifacts: 128 of them.
pub(super) const MOST: u32 = 1_024;

/// The body, which ends in a status if a message of it has too many fields.
pub fn few(body: Body) -> Body {
    Body::new(Counted::new(body))
}

pub(super) struct Counted {
    body: Body,
    reading: Reading,
    /// Bytes of the message that are still to come.
    left: u32,
    /// Fields of the message so far.
    fields: u32,
}

/// The next part of the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// The flag and the length of a message; `read` of its bytes have come.
    Head { read: u8, len: u32 },
    /// The number and the type of a field.
    Tag { value: u64, shift: u32 },
    /// A number, which ends with a byte below 128.
    Varint,
    /// The length of what follows.
    Length { value: u64, shift: u32 },
    /// Remaining bytes of a field's content.
    Content(u64),
}

/// The rest is not a message: the decoder refuses it.
const UNREAD: Reading = Reading::Content(u64::MAX);

impl Counted {
    pub(super) fn new(body: Body) -> Self {
        Self {
            body,
            reading: Reading::Head { read: 0, len: 0 },
            left: 0,
            fields: 0,
        }
    }

    /// Reads on. `false` if a message has too many fields.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((&byte, rest)) = bytes.split_first() {
            self.reading = match self.reading {
                Reading::Head { read, len } => {
                    bytes = rest;
                    self.head(read, len, byte)
                }
                Reading::Content(len) => {
                    // No more than `left` is skipped, so that the casts lose nothing.
                    let skipped = len.min(u64::from(self.left)).min(bytes.len() as u64);
                    bytes = &bytes[skipped as usize..];
                    self.left -= skipped as u32;
                    match len - skipped {
                        0 => TAG,
                        len => Reading::Content(len),
                    }
                }
                Reading::Tag { value, shift } => {
                    bytes = rest;
                    self.left -= 1;
                    match varint(value, shift, byte) {
                        Some(Varint::Goes(value, shift)) => Reading::Tag { value, shift },
                        Some(Varint::Ends(tag)) => {
                            self.fields += 1;
                            content(tag)
                        }
                        None => UNREAD,
                    }
                }
                Reading::Varint => {
                    bytes = rest;
                    self.left -= 1;
                    if byte & 0x80 == 0 {
                        TAG
                    } else {
                        Reading::Varint
                    }
                }
                Reading::Length { value, shift } => {
                    bytes = rest;
                    self.left -= 1;
                    match varint(value, shift, byte) {
                        Some(Varint::Goes(value, shift)) => Reading::Length { value, shift },
                        Some(Varint::Ends(0)) => TAG,
                        Some(Varint::Ends(len)) => Reading::Content(len),
                        None => UNREAD,
                    }
                }
            };
            if self.fields > MOST {
                return false;
            }
            // If no byte is left, the next byte begins a message: nothing is ever taken from a
            // `left` of zero.
            if self.left == 0 && !matches!(self.reading, Reading::Head { .. }) {
                self.reading = Reading::Head { read: 0, len: 0 };
            }
        }
        true
    }

    /// One byte of a message's head.
    fn head(&mut self, read: u8, len: u32, byte: u8) -> Reading {
        let len = if read == 0 {
            0
        } else {
            len << 8 | u32::from(byte)
        };
        if read < 4 {
            return Reading::Head {
                read: read + 1,
                len,
            };
        }
        (self.left, self.fields) = (len, 0);
        TAG
    }
}

const TAG: Reading = Reading::Tag { value: 0, shift: 0 };

enum Varint {
    Goes(u64, u32),
    Ends(u64),
}

/// One more byte of a number. `None` if the number is too long.
fn varint(value: u64, shift: u32, byte: u8) -> Option<Varint> {
    if shift > 63 {
        return None;
    }
    let value = value | u64::from(byte & 0x7f) << shift;
    Some(if byte & 0x80 == 0 {
        Varint::Ends(value)
    } else {
        Varint::Goes(value, shift + 7)
    })
}

/// What follows a tag.
fn content(tag: u64) -> Reading {
    match tag & 7 {
        0 => Reading::Varint,
        1 => Reading::Content(8),
        2 => Reading::Length { value: 0, shift: 0 },
        5 => Reading::Content(4),
        // The decoder skips an unknown group and decodes what follows: a lost position here would
        // hide all of that. The fields in a group count too; no valid message has one.
        3 | 4 => TAG,
        _ => UNREAD,
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(bytes) = frame.data_ref()
            && !self.read(bytes)
        {
            // The rest stays unread: no decoder reads a body that has ended in a status.
            self.body = Body::empty();
            let what = format!("has more than {MOST} fields");
            return Poll::Ready(Some(Err(status::invalid("the message", &what))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use evidenceos_proto as wire;
    use prost::Message as _;

    use super::*;

    fn counted() -> Counted {
        Counted::new(Body::empty())
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((message.len() as u32).to_be_bytes());
        bytes.extend(message);
        bytes
    }

    fn commit(artifacts: usize, module: usize) -> Vec<u8> {
        let request = wire::CommitArtifactsRequest {
            claim_id: Bytes::from_static(&[1; 32]),
            artifacts: vec![wire::Artifact::default(); artifacts],
            wasm_module: vec![0; module].into(),
        };
        framed(&request.encode_to_vec())
    }

    #[test]
    fn a_message_has_so_many_fields_and_the_next_one_as_many_again() {
        // Claim and module are fields too.
        let (most, more) = (commit(1_022, 300), commit(1_023, 300));
        assert!(counted().read(&[most.clone(), most.clone(), most.clone()].concat()));
        assert!(!counted().read(&more));
        assert!(!counted().read(&[most, more].concat()));
        assert!(counted().read(&commit(128, 4 << 20)));
    }

    #[test]
    fn every_kind_of_field_is_passed_over_whole() {
        let one_of_each = [
            &[0x08, 0xff, 0x7f][..],
            &[0x11, 8, 8, 8, 8, 8, 8, 8, 8],
            &[0x1a, 3, 8, 8, 8],
            &[0x1a, 0],
            &[0x25, 8, 8, 8, 8],
            &[0xf8, 0xff, 0x7f, 1],
        ]
        .concat();
        let mut reader = counted();
        assert!(reader.read(&framed(&one_of_each)[..5 + one_of_each.len() - 1]));
        assert_eq!((reader.fields, reader.left), (6, 1));
    }

    #[test]
    fn a_group_hides_no_field() {
        // No valid message has a group, but the decoder skips unknown ones with their content and decodes
        // what follows. Found while writing the fuzz target `request`.
        let empty_group = [0x7b, 0x7c];
        let group_with_fields = [0x7b, 0x08, 1, 0x12, 1, 0xff, 0x7c];
        for group in [&empty_group[..], &group_with_fields] {
            let artifacts = wire::CommitArtifactsRequest {
                artifacts: vec![wire::Artifact::default(); 2_000],
                ..Default::default()
            };
            let message = [group, &artifacts.encode_to_vec()].concat();
            let decoded = wire::CommitArtifactsRequest::decode(&message[..]).expect("a message");
            assert_eq!(decoded.artifacts.len(), 2_000);
            assert!(!counted().read(&framed(&message)));
        }
        let mut reader = counted();
        reader.read(&framed(&group_with_fields)[..5 + group_with_fields.len() - 1]);
        assert_eq!(reader.fields, 3);
    }

    #[test]
    fn it_counts_the_same_however_the_bytes_come() {
        for artifacts in [0, 1, 500, 1_021, 1_022, 1_023, 1_400] {
            for module in [0, 1, 200, 3_000] {
                for cut in [1, 2, 3, 5, 6, 64, 700, 9_000] {
                    let bytes = commit(artifacts, module);
                    let mut reader = counted();
                    let passes = bytes.chunks(cut).all(|piece| reader.read(piece));
                    let fields = artifacts + 1 + usize::from(module > 0);
                    assert_eq!(
                        passes,
                        fields <= MOST as usize,
                        "{artifacts} {module} {cut}"
                    );
                }
            }
        }
    }

    #[test]
    fn no_bytes_upset_it() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..500 {
            let len = next() % 2_000;
            let mut bytes: Vec<u8> = (0..len).map(|_| next() as u8).collect();
            if bytes.len() > 3 {
                // A message that is not much longer than what there is.
                bytes[1..4].copy_from_slice(&[0, 0, next() as u8 % 8]);
            }
            let cut = 1 + (next() % 90) as usize;
            let mut reader = counted();
            let _ = bytes.chunks(cut).all(|piece| reader.read(piece));
        }
    }
}

//! Frames: how messages lie on the stream.
//!
//! ```text
//! u32 big endian: length of what follows (5 ..= MAX_BODY + 5)
//! u8: kind    u32 big endian: id    body
//! ```
//!
//! The body of `Hello`, `Request` and `Answer` is JSON, that of `Credit` a big-endian
//! u32 (bytes the sender may have under way in addition), that of `Chunk` raw bytes,
//! that of `End` empty. A length out of range or an unknown kind ends the
//! conversation: after it nothing on the stream can be trusted.

/// Largest body. Large content goes in chunks.
pub const MAX_BODY: usize = 1 << 20;

const HEAD: usize = 9;

/// What a frame carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// [`crate::message::Hello`], once, id 0.
    Hello,
    /// [`crate::message::Request`].
    Request,
    /// [`crate::message::Answer`].
    Answer,
    /// A piece of a request's stream.
    Chunk,
    /// The stream of a request is complete.
    End,
    /// The agent takes so many more bytes of a request's stream.
    Credit,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Request => 2,
            Self::Answer => 3,
            Self::Chunk => 4,
            Self::End => 5,
            Self::Credit => 6,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Hello, Self::Request, Self::Answer, Self::Chunk, Self::End, Self::Credit]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// One frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// Which request it belongs to; 0 for `Hello`.
    pub id: u32,
    /// At most [`MAX_BODY`] bytes.
    pub body: Vec<u8>,
}

/// Bytes that are no frame.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadFrame {
    /// Neither this protocol nor any version of it.
    #[error(
        "a frame of {length} bytes is announced, {MAX_BODY} are allowed (is something else printing to the stream?)"
    )]
    Length {
        /// As announced.
        length: u32,
    },
    /// A kind that this version does not know.
    #[error("unknown kind of frame {code}")]
    Kind {
        /// As read.
        code: u8,
    },
    /// A body too large to send.
    #[error("a body of {length} bytes does not fit into a frame")]
    Body {
        /// Its size.
        length: usize,
    },
}

impl Frame {
    /// The frame as bytes.
    ///
    /// # Errors
    ///
    /// [`BadFrame::Body`] if the body is larger than [`MAX_BODY`].
    pub fn encode(&self) -> Result<Vec<u8>, BadFrame> {
        let length = u32::try_from(self.body.len())
            .ok()
            .filter(|_| self.body.len() <= MAX_BODY)
            .ok_or(BadFrame::Body { length: self.body.len() })?;
        let mut bytes = Vec::with_capacity(HEAD + self.body.len());
        bytes.extend_from_slice(&(length + 5).to_be_bytes());
        bytes.push(self.kind.code());
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(&self.body);
        Ok(bytes)
    }
}

/// Cuts a stream of bytes into frames, whatever pieces it arrives in.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes bytes as they come.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    ///
    /// [`BadFrame`]: the stream is not ours, or no longer. Do not read on.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, BadFrame> {
        let Some((head, _)) = self.buffer.split_first_chunk::<HEAD>() else {
            // A wrong length is told from its first four bytes: garbage need not fill a frame first.
            if let Some((length, _)) = self.buffer.split_first_chunk::<4>() {
                checked_length(u32::from_be_bytes(*length))?;
            }
            return Ok(None);
        };
        let [l0, l1, l2, l3, code, i0, i1, i2, i3] = *head;
        let body = checked_length(u32::from_be_bytes([l0, l1, l2, l3]))?;
        let kind = Kind::from_code(code).ok_or(BadFrame::Kind { code })?;
        if self.buffer.len() < HEAD + body {
            return Ok(None);
        }
        let frame = Frame {
            kind,
            id: u32::from_be_bytes([i0, i1, i2, i3]),
            body: self.buffer[HEAD..HEAD + body].to_vec(),
        };
        self.buffer.drain(..HEAD + body);
        Ok(Some(frame))
    }

    /// Whether the stream stopped inside a frame.
    pub fn is_in_the_middle(&self) -> bool {
        !self.buffer.is_empty()
    }
}

fn checked_length(length: u32) -> Result<usize, BadFrame> {
    let body = (length as usize).checked_sub(5).filter(|body| *body <= MAX_BODY);
    body.ok_or(BadFrame::Length { length })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        prop::sample::select(vec![
            Kind::Hello,
            Kind::Request,
            Kind::Answer,
            Kind::Chunk,
            Kind::End,
            Kind::Credit,
        ])
    }

    proptest! {
        #[test]
        fn any_frames_survive_the_stream_in_pieces_of_any_size(
            frames in prop::collection::vec((kinds(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            piece in 1_usize..64,
        ) {
            let frames: Vec<Frame> = frames.into_iter().map(|(kind, id, body)| Frame { kind, id, body }).collect();
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().unwrap()).collect();
            let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
            for part in bytes.chunks(piece) {
                decoder.feed(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(!decoder.is_in_the_middle());
        }

        #[test]
        fn garbage_is_refused_or_waited_for_but_never_believed_without_a_sound_head(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            while let Ok(Some(frame)) = decoder.next_frame() {
                prop_assert!(frame.body.len() <= MAX_BODY);
            }
        }
    }

    #[test]
    fn text_on_the_stream_is_refused_at_its_first_four_bytes() {
        let mut decoder = Decoder::default();
        decoder.feed(b"Welc");
        assert!(matches!(decoder.next_frame(), Err(BadFrame::Length { .. })));
    }
}

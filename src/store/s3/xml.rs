//! Just enough XML: a store's answer as a small tree, and text to put into a request.
//!
//! Text stays bytes until someone asks for it, so that one key that is not UTF-8 spoils nothing but
//! itself. Namespaces and attributes are ignored.

use quick_xml::Reader;
use quick_xml::events::Event;

/// S3's answers are four levels deep.
const DEEPEST: usize = 16;

/// One element with what is inside it.
#[derive(Debug, Default)]
pub(super) struct Element {
    name: String,
    text: Vec<u8>,
    children: Vec<Self>,
}

impl Element {
    /// The root element of a document, or what is wrong with it.
    pub(super) fn parse(document: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::from_reader(document);
        // The bottom of the stack is the document itself.
        let mut stack = vec![Self::default()];
        loop {
            let event = reader.read_event().map_err(|error| error.to_string())?;
            let top = stack.last_mut().ok_or("an element ends that never began")?;
            match event {
                Event::Start(start) => {
                    if stack.len() > DEEPEST {
                        return Err("elements are nested too deeply".into());
                    }
                    stack.push(Self::named(start.local_name().as_ref()));
                }
                Event::Empty(start) => top.children.push(Self::named(start.local_name().as_ref())),
                Event::Text(text) => top.text.extend_from_slice(&text),
                Event::CData(text) => top.text.extend_from_slice(&text),
                Event::GeneralRef(reference) => {
                    let name: &[u8] = &reference;
                    let known = match name {
                        b"amp" => Some('&'),
                        b"lt" => Some('<'),
                        b"gt" => Some('>'),
                        b"quot" => Some('"'),
                        b"apos" => Some('\''),
                        _ => reference.resolve_char_ref().ok().flatten(),
                    };
                    // An unknown one leaves a byte that is not UTF-8: only this text is unreadable.
                    match known {
                        Some(c) => {
                            top.text
                                .extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                        }
                        None => top.text.push(0xff),
                    }
                }
                Event::End(_) => {
                    let done = stack.pop().ok_or("an element ends that never began")?;
                    stack
                        .last_mut()
                        .ok_or("an element ends that never began")?
                        .children
                        .push(done);
                }
                Event::Eof => break,
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            }
        }
        match (
            stack.len(),
            stack.pop().and_then(|mut document| document.children.pop()),
        ) {
            (1, Some(root)) => Ok(root),
            (1, None) => Err("there is no element in it".into()),
            _ => Err("it ends in the middle of an element".into()),
        }
    }

    fn named(name: &[u8]) -> Self {
        Self {
            name: String::from_utf8_lossy(name).into_owned(),
            ..Self::default()
        }
    }

    /// The element's own name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Every child of this name.
    pub(super) fn all(&self, name: &'static str) -> impl Iterator<Item = &Self> + use<'_> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The text of the first child of this name, exactly; `None` if it is missing or not UTF-8.
    pub(super) fn text_of(&self, name: &'static str) -> Option<&str> {
        self.all(name)
            .next()
            .and_then(|child| std::str::from_utf8(&child.text).ok())
    }
}

/// Text as it stands between tags.
///
/// Control characters have no spelling in XML 1.0; as character references most stores take them.
pub(super) fn escape(text: &str) -> String {
    use std::fmt::Write as _;

    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_keeps_its_spaces_and_references() {
        let root = Element::parse(
            b"<?xml version=\"1.0\"?>\n<r xmlns=\"x\"> <k> a&amp;b&#x09;&lt; </k><k/><e></e></r>",
        )
        .unwrap();
        assert_eq!(root.name(), "r");
        assert_eq!(root.text_of("k"), Some(" a&b\t< "));
        assert_eq!(root.all("k").count(), 2);
        assert_eq!(root.text_of("e"), Some(""));
        assert_eq!(root.text_of("missing"), None);
    }

    #[test]
    fn what_is_not_utf8_spoils_only_itself() {
        let root = Element::parse(b"<r><a>\xff</a><b>&nonsense;</b><c>fine</c></r>").unwrap();
        assert_eq!((root.text_of("a"), root.text_of("b")), (None, None));
        assert_eq!(root.text_of("c"), Some("fine"));
    }

    #[test]
    fn what_is_not_a_document_is_an_error() {
        let deep = "<a>".repeat(100);
        for bad in [
            "",
            "plain text",
            "<a><b></a>",
            "<a>",
            "</a>",
            "<a",
            deep.as_str(),
        ] {
            assert!(Element::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn escaped_text_reads_back() {
        let text = "a<b>&\"'\t\u{1}\n\u{e9}";
        let root = Element::parse(format!("<r><k>{}</k></r>", escape(text)).as_bytes()).unwrap();
        assert_eq!(root.text_of("k"), Some(text));
    }
}

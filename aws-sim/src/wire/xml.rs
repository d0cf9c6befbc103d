//! XML as the Query protocol answers it: elements and text, indented, nothing else.

/// Writes one document.
#[derive(Debug, Default)]
pub struct Xml {
    out: String,
    open: Vec<String>,
}

impl Xml {
    /// Opens `<name xmlns="…">`.
    pub fn root(name: &str, namespace: &str) -> Self {
        let mut xml = Xml::default();
        xml.out.push_str(&format!("<{name} xmlns=\"{namespace}\">\n"));
        xml.open.push(name.to_owned());
        xml
    }

    /// Content to be put into another document, two levels deep: inside its root and one element.
    pub fn fragment() -> Self {
        Xml { out: String::new(), open: vec![String::new(), String::new()] }
    }

    /// Puts a fragment into an element of this document's root.
    pub fn splice(&mut self, name: &str, fragment: Xml) {
        if fragment.out.is_empty() {
            self.indent();
            self.out.push_str(&format!("<{name}/>\n"));
        } else {
            self.element(name, |xml| xml.out.push_str(&fragment.out));
        }
    }

    fn indent(&mut self) {
        self.out.push_str(&"  ".repeat(self.open.len()));
    }

    pub fn text(&mut self, name: &str, value: impl std::fmt::Display) {
        let value = escape(&value.to_string());
        self.indent();
        self.out.push_str(&format!("<{name}>{value}</{name}>\n"));
    }

    pub fn optional(&mut self, name: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    pub fn element(&mut self, name: &str, inside: impl FnOnce(&mut Xml)) {
        self.indent();
        self.out.push_str(&format!("<{name}>\n"));
        self.open.push(name.to_owned());
        inside(self);
        self.open.pop();
        self.indent();
        self.out.push_str(&format!("</{name}>\n"));
    }

    /// `<name><member>…</member>…</name>`, or `<name/>`.
    pub fn list<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Xml, T),
    ) {
        let mut items = items.into_iter().peekable();
        if items.peek().is_none() {
            self.indent();
            self.out.push_str(&format!("<{name}/>\n"));
            return;
        }
        self.element(name, |xml| {
            for item in items {
                xml.element("member", |xml| each(xml, item));
            }
        });
    }

    pub fn texts<T: std::fmt::Display>(&mut self, name: &str, items: impl IntoIterator<Item = T>) {
        self.element(name, |xml| {
            for item in items {
                xml.text("member", item);
            }
        });
    }

    pub fn finish(mut self) -> String {
        while let Some(name) = self.open.pop() {
            self.indent();
            self.out.push_str(&format!("</{name}>\n"));
        }
        self.out
    }
}

/// Escapes markup; control characters that XML 1.0 cannot carry become U+FFFD.
fn escape(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for character in raw.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(character),
            control if control < ' ' => out.push('\u{FFFD}'),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nests_and_escapes() {
        let mut xml = Xml::root("R", "urn:x");
        xml.text("A", "<&>\"\u{1}");
        xml.list("Empty", Vec::<u8>::new(), |_, _| {});
        xml.list("L", [1], |xml, item| xml.text("N", item));
        assert_eq!(
            xml.finish(),
            "<R xmlns=\"urn:x\">\n  <A>&lt;&amp;&gt;&quot;\u{FFFD}</A>\n  <Empty/>\n  <L>\n    <member>\n      <N>1</N>\n    </member>\n  </L>\n</R>\n"
        );
    }
}

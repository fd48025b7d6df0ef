//! Reads what `strace -f -y` writes.

use std::collections::HashMap;

/// One system call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub name: String,
    /// Number of the line where it was called.
    pub begin: usize,
    /// Number of the line where it returned; the same one if no other thread's call came in between.
    pub end: usize,
    /// What it returned; negative for an error or if that is not known.
    pub result: i64,
    /// What the first argument's descriptor is open on, as `-y` shows it; empty if there is none.
    pub path: String,
    /// The path that exists because of it: of a creating open, or where a rename leads.
    pub made: Option<String>,
    /// Bytes asked to be written, for calls on one buffer.
    pub data_bytes: usize,
    /// All texts among the arguments, unescaped, one after the other; empty if there are only zeros in them.
    data: Vec<u8>,
}

impl Call {
    /// True if the bytes are among the call's texts.
    pub fn has(&self, bytes: &[u8]) -> bool {
        self.data.windows(bytes.len()).any(|window| window == bytes)
    }
}

/// Reads a trace. Lines that are no calls (signals, exits) are passed over.
pub fn parse(text: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut unfinished: HashMap<&str, (usize, &str)> = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some((begin, start)) = unfinished.remove(thread) else {
                continue;
            };
            let tail = resumed.split_once(" resumed>").map_or("", |(_, tail)| tail);
            calls.extend(read_call(&format!("{start}{tail}"), begin, number));
        } else if let Some(start) = rest.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, (number, start));
        } else {
            calls.extend(read_call(rest, number, number));
        }
    }
    calls
}

fn read_call(text: &str, begin: usize, end: usize) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    if name.is_empty()
        || !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    {
        return None;
    }
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let result = result
        .split(|end: char| !(end.is_ascii_digit() || end == '-'))
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(-1);
    let texts = texts_of(arguments);
    let data_bytes = texts.iter().map(Vec::len).sum();
    let made = match name {
        "openat" if arguments.contains("O_CREAT") => {
            opened_path(rest).or_else(|| text_at(&texts, 0))
        }
        "creat" => text_at(&texts, 0),
        "rename" | "renameat" | "renameat2" => text_at(&texts, 1),
        _ => None,
    };
    Some(Call {
        name: name.to_owned(),
        begin,
        end,
        result,
        path: descriptor_path(arguments),
        made,
        data_bytes,
        data: if texts.iter().flatten().all(|byte| *byte == 0) {
            Vec::new()
        } else {
            texts.concat()
        },
    })
}

/// The path in `7</a/path>, …`; paths with `>` in them are not made by tests.
fn descriptor_path(arguments: &str) -> String {
    let digits = arguments.bytes().take_while(u8::is_ascii_digit).count();
    arguments[digits..]
        .strip_prefix('<')
        .filter(|_| digits > 0)
        .and_then(|rest| rest.split_once('>'))
        .map_or_else(String::new, |(path, _)| path.to_owned())
}

/// The path in the result `= 7</a/path>`, which is absolute whatever was asked for.
fn opened_path(rest: &str) -> Option<String> {
    let (_, result) = rest.rsplit_once(" = ")?;
    let path = descriptor_path(result.trim());
    (!path.is_empty()).then_some(path)
}

fn text_at(texts: &[Vec<u8>], at: usize) -> Option<String> {
    texts
        .get(at)
        .map(|text| String::from_utf8_lossy(text).into_owned())
}

/// The quoted texts of the arguments, unescaped as strace escapes: as C does, octal of one to three digits.
fn texts_of(arguments: &str) -> Vec<Vec<u8>> {
    let bytes = arguments.as_bytes();
    let mut texts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'"' {
            at += 1;
            continue;
        }
        at += 1;
        let mut text = Vec::new();
        while at < bytes.len() && bytes[at] != b'"' {
            if bytes[at] != b'\\' || at + 1 == bytes.len() {
                text.push(bytes[at]);
                at += 1;
                continue;
            }
            at += 1;
            let octal = bytes[at..]
                .iter()
                .take(3)
                .take_while(|byte| (b'0'..=b'7').contains(byte))
                .count();
            if octal > 0 {
                let value = bytes[at..at + octal]
                    .iter()
                    .fold(0_u32, |sum, digit| sum * 8 + u32::from(digit - b'0'));
                text.push(u8::try_from(value & 0xff).expect("masked to a byte"));
                at += octal;
                continue;
            }
            text.push(match bytes[at] {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                b'v' => 0x0b,
                b'f' => 0x0c,
                other => other,
            });
            at += 1;
        }
        at += 1;
        texts.push(text);
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_in_two_lines_has_both_ends_and_all_arguments() {
        let text = "5 pwrite64(7</s/f>, \"a\\0b\\\"c\\3774\", 7, 0 <unfinished ...>\n6 fsync(8</s>) = 0\n\
                    5 <... pwrite64 resumed>) = 7\n5 +++ exited with 0 +++\n";
        let calls = parse(text);
        assert_eq!(calls.len(), 2);
        assert_eq!((calls[0].begin, calls[0].end), (2, 2));
        assert_eq!((calls[1].begin, calls[1].end, calls[1].result), (1, 3, 7));
        assert_eq!(calls[1].path, "/s/f");
        assert_eq!(calls[1].data, b"a\0b\"c\xff4");
        assert_eq!(calls[1].data_bytes, 7);
    }

    #[test]
    fn failures_and_sockets_are_told_apart_from_success_and_files() {
        let calls = parse(
            "5 fdatasync(7</s/f>) = -1 ENOSPC (No space left on device)\n5 sendto(9<socket:[1]>, \"x\", 1, MSG_NOSIGNAL, NULL, 0) = 1\n",
        );
        assert_eq!(calls[0].result, -1);
        assert_eq!(calls[1].path, "socket:[1]");
    }
}

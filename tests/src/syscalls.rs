//! The order of a gateway's system calls, as strace saw it: was every record on disk, in a file whose
//! directory entry was on disk, before its sender heard 200?
//!
//! Real disks and file systems hide a missing directory sync nearly always, so watching what survives is not
//! enough; this looks at what was asked of the system instead. Guarantee 1 in that form, per delivery:
//!
//! ```text
//! create(segment) < sync(directory) ─┐
//! write(record) < sync(segment) ─────┴─< first byte of the answer
//! ```
//!
//! where `<` means "returned, successfully, before it was called". [`parse`] turns strace's text into calls
//! with a beginning and an end (line numbers: strace writes a call that others overlap in two lines);
//! [`violations`] checks the order.

mod trace;

pub use trace::{Call, parse};

/// One answered delivery to look for.
#[derive(Clone, Debug)]
pub struct Answered {
    /// Bytes that only this delivery's body has.
    pub marker: String,
    /// Its id in the answer.
    pub delivery: String,
}

/// What strace has to be told to trace, for [`parse`] to have everything.
pub const TRACED: &str = "openat,creat,rename,renameat,renameat2,unlink,unlinkat,ftruncate,write,writev,pwrite64,pwritev,\
                          pwritev2,fsync,fdatasync,sync_file_range,sendto,sendmsg,exit_group";

/// Checks the order for every delivery and returns what is wrong, one text each. Every delivery must also be
/// found: a trace that shows nothing proves nothing.
pub fn violations(calls: &[Call], answered: &[Answered]) -> Vec<String> {
    answered
        .iter()
        .filter_map(|delivery| {
            check(calls, delivery)
                .err()
                .map(|why| format!("{}: {why}", delivery.delivery))
        })
        .collect()
}

fn check(calls: &[Call], delivery: &Answered) -> Result<(), String> {
    let answer = calls
        .iter()
        .find(|call| {
            is_send(call) && call.has(b"HTTP/1.1 200") && call.has(delivery.delivery.as_bytes())
        })
        .ok_or("no answer with its id was sent")?;
    let writes: Vec<&Call> = calls
        .iter()
        .filter(|call| is_file_write(call) && call.has(delivery.marker.as_bytes()))
        .collect();
    let first = writes.first().ok_or("it was never written to a file")?;
    let mut why = format!(
        "written at line {} to {}, but no sync of that file came back",
        first.begin, first.path
    );
    for write in writes {
        if write.result < 0 || usize::try_from(write.result).ok() != Some(write.data_bytes) {
            why = format!("the write at line {} was short or failed", write.begin);
            continue;
        }
        let Some(sync) = calls.iter().find(|call| {
            is_sync(call) && call.path == write.path && call.result == 0 && call.begin > write.end
        }) else {
            continue;
        };
        if sync.end >= answer.begin {
            why = format!(
                "answered at line {} before the sync of {} came back at line {}",
                answer.begin, write.path, sync.end
            );
            continue;
        }
        return check_entry(calls, &write.path, answer);
    }
    Err(why)
}

/// The file's directory entry must be on disk before the answer, if the file was made during the trace.
fn check_entry(calls: &[Call], path: &str, answer: &Call) -> Result<(), String> {
    let made = calls
        .iter()
        .filter(|call| {
            call.end < answer.begin && call.result >= 0 && call.made.as_deref() == Some(path)
        })
        .max_by_key(|call| call.end);
    let Some(made) = made else { return Ok(()) };
    let directory = path
        .rsplit_once('/')
        .map_or(".", |(directory, _)| directory);
    let synced = calls.iter().any(|call| {
        is_sync(call)
            && call.path == directory
            && call.result == 0
            && call.begin > made.end
            && call.end < answer.begin
    });
    if synced {
        Ok(())
    } else {
        Err(format!(
            "{path} was made at line {} and its directory not synced before the answer at line {}",
            made.end, answer.begin
        ))
    }
}

fn is_sync(call: &Call) -> bool {
    matches!(call.name.as_str(), "fsync" | "fdatasync")
}

fn is_file_write(call: &Call) -> bool {
    matches!(
        call.name.as_str(),
        "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2"
    ) && call.path.starts_with('/')
}

fn is_send(call: &Call) -> bool {
    matches!(
        call.name.as_str(),
        "write" | "writev" | "sendto" | "sendmsg"
    ) && !call.path.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
10 openat(AT_FDCWD, "/spool/segment-1.log", O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 7</spool/segment-1.log>
10 fsync(7</spool/segment-1.log>) = 0
10 openat(AT_FDCWD, "/spool", O_RDONLY|O_CLOEXEC) = 8</spool>
10 fsync(8</spool>) = 0
11 pwrite64(7</spool/segment-1.log>, "\1\2head{\"pass\":\"marker-1\"}", 25, 64) = 25
11 fdatasync(7</spool/segment-1.log> <unfinished ...>
12 write(2</tmp/log>, "noise\n", 6) = 6
11 <... fdatasync resumed>) = 0
12 writev(9<socket:[77]>, [{iov_base="HTTP/1.1 200 OK\r\n\r\n", iov_len=19}, {iov_base="{\"delivery\":\"del_a1\"}", iov_len=21}], 2) = 40
"#;

    fn found(text: &str) -> Vec<String> {
        let answered = Answered {
            marker: "marker-1".to_owned(),
            delivery: "del_a1".to_owned(),
        };
        violations(&parse(text), &[answered])
    }

    #[test]
    fn the_right_order_has_no_violations() {
        assert_eq!(found(GOOD), Vec::<String>::new());
    }

    #[test]
    fn each_wrong_order_is_a_violation() {
        let lines: Vec<&str> = GOOD.trim().lines().collect();
        let without = |dropped: usize| {
            let kept = lines.iter().enumerate().filter(|(at, _)| *at != dropped);
            kept.map(|(_, line)| *line).collect::<Vec<_>>().join("\n")
        };
        assert!(found(&without(3))[0].contains("directory not synced"));
        assert!(found(&without(4))[0].contains("never written"));
        assert!(found(&without(8))[0].contains("no answer"));
        // Answered between the beginning and the end of the sync.
        let mut moved = lines.clone();
        let answer = moved.remove(8);
        moved.insert(6, answer);
        assert!(found(&moved.join("\n"))[0].contains("before the sync"));
        // Synced before it was written.
        let mut moved = lines.clone();
        let write = moved.remove(4);
        moved.insert(7, write);
        assert!(found(&moved.join("\n"))[0].contains("no sync"));
        let failed = GOOD.replace("resumed>) = 0", "resumed>) = -1 EIO (Input/output error)");
        assert!(found(&failed)[0].contains("no sync"));
        let short = GOOD.replace(", 25, 64) = 25", ", 25, 64) = 12");
        assert!(found(&short)[0].contains("short"));
    }

    #[test]
    fn a_renamed_file_counts_as_made_then() {
        let renamed = GOOD.replace(
            "11 pwrite64(",
            "10 rename(\"/spool/x.tmp\", \"/spool/segment-1.log\") = 0\n11 pwrite64(",
        );
        assert!(found(&renamed)[0].contains("directory not synced"));
    }
}

//! Configurations with faults that stand near secrets.

use super::*;

/// Shows what both programs say of files with faults that stand near secrets.
pub(super) async fn check_broken_files(dir: &Path, token: &str, shown: &mut Shown) {
    let source =
        |auth: &str| format!("[[sources]]\nname = \"a\"\nvendor = \"standard\"\nauth = {auth}\n");
    let s = INLINE_SECRET;
    let gateway = [
        source(&format!("{s:?}")),
        source(&format!(
            "{{ scheme = {s:?}, secrets = [{{ value = {s:?} }}] }}"
        )),
        source(&format!("{{ scheme = \"api_key\", secrets = {s:?} }}")),
        source(&format!("{{ scheme = \"api_key\", secrets = [{s:?}] }}")),
        source(&format!(
            "{{ scheme = \"api_key\", secrets = [{{ value = {s:?}, valve = {s:?} }}] }}"
        )),
        source(&format!(
            "{{ scheme = \"api_key\", secrets = [{{ value = {s:?}, env = {s:?} }}] }}"
        )),
        source(&format!(
            "{{ scheme = \"api_key\", secrets = [{{ value = {s:?} ] }}"
        )),
        source(&format!(
            "{{ scheme = \"api_key\", secrets = [{{ value = {s} }}] }}"
        )),
        source(&format!(
            "{{ scheme = \"api_key\", secrets = [{{ value = \"{s} }}] }}"
        )),
        source(&format!(
            "{{ scheme = \"hmac\", encoding = {s:?}, secrets = [{{ value = {s:?} }}] }}"
        )),
        source(&format!(
            "{{ scheme = \"standard_webhooks\", secrets = [{{ value = {s:?} }}] }}"
        )),
        format!("[pass_state]\ntoken = {s:?}\n"),
        format!("[pass_state]\ntoken = {{ value = {s:?} }}\n"),
        format!("[telemetry]\notlp_endpoint = \"ftp://user:{s}@127.0.0.1:1\"\n"),
        format!("[telemetry]\notlp_endpoint = \"http://user:{s}@bad host:4317\"\n"),
        format!(
            "[spool]\nbackend = \"jetstream\"\n[spool.jetstream]\nservers = [\"nats://user:{s}@127.0.0.1:4222\"]\n\
             password = {s:?}\n"
        ),
        format!(
            "[spool]\nbackend = \"jetstream\"\n[spool.jetstream]\ntoken = {{ value = {s:?}, env = 1 }}\n"
        ),
    ];
    let token_of = |text: &str| {
        format!(
            "[[principals]]\nname = \"a\"\n{text}\nscopes = [\"read\"]\nsources = [\"*\"]\norganizations = []\n"
        )
    };
    let principals = [
        token_of(&format!("token_sha256 = [{token:?}]")),
        token_of(&format!("token_sha256 = {token:?}")),
        token_of(&format!("token_sha256 = [{token}]")),
        token_of(&format!("token = {token:?}")),
        token_of(&format!(
            "client_names = [{token:?}]\ntoken_sha256 = [{token:?}]"
        )),
        token_of(&format!("token_sha256 = [\"{token}]")),
    ];
    let state = [
        format!("[store]\nbackend = \"postgres\"\n[store.postgres]\nurl = {s:?}\n"),
        format!(
            "[store]\nbackend = \"postgres\"\n[store.postgres]\nurl = {{ value = \"nonsense://a:{s}@b/c\" }}\n"
        ),
        format!(
            "[store]\nbackend = \"postgres\"\n[store.postgres]\nurl = {{ value = {s:?}, env = \"A\" }}\n"
        ),
        format!("[store]\nbackend = \"postgres\"\n[store.postgres]\nurl = {{ value = \"{s} }}\n"),
    ];
    let mut files: Vec<(_, String)> = gateway.map(|text| (programs().gateway, text)).to_vec();
    files.extend(state.map(|text| (programs().state, text)));
    for (index, text) in principals.iter().enumerate() {
        let file = dir.join(format!("principals-{index}.toml"));
        std::fs::write(&file, text).unwrap();
        files.push((
            programs().state,
            format!("[auth]\nprincipals_file = {file:?}\n"),
        ));
    }
    // And one without a fault, which shows nothing of it either.
    let sound = format!("[pass_state]\nendpoint = \"http://user:{s}@127.0.0.1:1/{s}\"\n");
    files.insert(0, (programs().gateway, sound));
    for (index, (program, text)) in files.iter().enumerate() {
        let file = dir.join(format!("broken-{index}.toml"));
        std::fs::write(&file, text).unwrap();
        for command in ["check-config", "serve"] {
            let mut process = tokio::process::Command::new(program);
            process
                .arg(command)
                .arg("--config")
                .arg(&file)
                .arg("--data-dir")
                .arg(dir.join("none"))
                .kill_on_drop(true);
            // What principals are at fault for, serve also tells.
            let serves = command == "serve";
            if serves && index < files.len() - principals.len() {
                continue;
            }
            let output = tokio::time::timeout(LIMIT, process.output()).await;
            let output = output
                .expect("a file with faults ends the program")
                .unwrap();
            assert_eq!(
                output.status.code() == Some(64),
                index > 0,
                "{command}: {text}"
            );
            for bytes in [&output.stdout, &output.stderr] {
                shown.add(
                    format!("{command} of broken-{index}.toml"),
                    String::from_utf8_lossy(bytes),
                );
            }
        }
    }
}

//! Agents without root: weaker boxes, honest about it, and the same services.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use dugnad_cluster::http::get_text;
use dugnad_cluster::{
    Community, Options, PATIENCE, installed, processes_of, root, say, skip, until, write,
};

#[test]
fn a_community_of_ordinary_users() {
    let test = "a_community_of_ordinary_users";
    if installed(&["/usr/bin/python3"]).is_none() {
        return skip(test, "no /usr/bin/python3");
    }
    let mut options = Options::default();
    if root() {
        let Some(setpriv) = installed(&["/usr/bin/setpriv"]) else {
            return skip(test, "no /usr/bin/setpriv to become another user with");
        };
        let words = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        options.before = std::iter::once(setpriv).chain(words.map(str::to_owned)).collect();
        options.owner = Some(65534);
    }
    let mut community = Community::with("user", 3, options);
    let status = community.status(0);
    let layers = status["services"].to_string();
    say(community.start, &format!("status says: {layers}"));
    assert!(!layers.contains("own uid") && layers.contains("no_new_privs"), "{layers}");
    write(&community.folder("files-hi/pkg").join("index.html"), "hi from a user");
    let file = community.service_file(
        "hi",
        "name = \"hi\"\nreplicas = 2\nstop_grace = \"1s\"\n\
         command = [\"/usr/bin/python3\", \"-m\", \"http.server\", \
         \"--bind\", \"$HOST\", \"$PORT\"]\n\
         [artifacts]\nany = \"pkg/\"\n[port]\nhttp = true\n\
         [needs]\nmemory = \"48M\"\ncpu = \"5%\"\ndisk = \"8M\"\nprocesses = 16\n",
    );
    community.deploy(0, &file);
    for node in &community.nodes {
        until("it answers", Duration::from_secs(20), || get_text(node.gateway, "/hi/"));
    }
    let before = processes_of(&community.mark, "hi");
    (0..3).for_each(|node| community.kill(node));
    assert_eq!(processes_of(&community.mark, "hi"), before, "services outlive their agents");
    (0..3).for_each(|node| community.start(node));
    community.wait_whole();
    community.wait_exactly(0, "hi", 2, PATIENCE);
    assert_eq!(processes_of(&community.mark, "hi"), before, "adopted, not started again");
    community.ok(1, &["rm", "hi"]);
    until("removed", Duration::from_secs(20), || {
        let left = processes_of(&community.mark, "hi");
        dugnad_cluster::holds(left.is_empty(), || format!("{left:?}"))
    });
}

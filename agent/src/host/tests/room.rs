//! Services that keep more on disk than they asked for.

use super::*;

impl World {
    fn note(&self) -> String {
        self.host.running().pop().map(|view| view.note).unwrap_or_default()
    }

    async fn says(&self, wanted: impl Fn(&str) -> bool) {
        while !wanted(&self.note()) {
            Timer::after(Duration::from_millis(5)).await;
        }
    }
}

#[test]
fn it_is_named_and_stopped_when_the_owner_gives_no_more() {
    with_host(|world| async move {
        let write = "head -c 9000000 /dev/zero > $STATE_DIRECTORY/data; exec sleep 1000";
        let mut spec = sh("big", write);
        spec.needs.disk = 4 << 20;
        spec.state = Keep::OnNode;
        let id = world.start(spec);
        world.ready(id).await;
        world.says(|note| note.contains("leaves it 4")).await;
        // There is room: it runs on, and is not named any more when it has less.
        let (process, data) = (world.pid(id), world.folder("big.0/state/data"));
        assert!(process.is_alive());
        fs::write(&data, "little").unwrap();
        world.says(str::is_empty).await;
        // Another has less than it asked for: what this one does is not its fault.
        fs::write(world.dir.join("over"), "").unwrap();
        let other = world.start(sh("small", "exec sleep 1000"));
        world.ready(other).await;
        fs::write(&data, vec![1; 6 << 20]).unwrap();
        let Report::Failed { reason, .. } = world.trouble().await else { panic!("it runs on") };
        assert!(reason.contains("limits.disk of this node is passed by 1"), "{reason}");
        assert!(!process.is_alive() && world.pid(other).is_alive());
        assert_eq!(fs::metadata(&data).unwrap().len(), 6 << 20);
        world
    });
}

#[test]
fn what_comes_with_it_is_not_counted() {
    with_host(|world| async move {
        let package = tree("packed");
        let stored = world.dir.join("stored").join(package.root.to_string());
        fs::create_dir_all(&stored).unwrap();
        fs::write(stored.join("large"), vec![1; 9 << 20]).unwrap();
        fs::write(world.dir.join("over"), "").unwrap();
        let mut spec = sh("packed", "exec sleep 1000");
        spec.needs.disk = 9 << 20;
        let package = Some(Tree { bytes: 9 << 20, ..package });
        let run = Run { package, ..run(spec) };
        let id = run.id;
        world.host.order(Order::Start(run));
        world.ready(id).await;
        // One that has as much of its own is stopped meanwhile.
        let mut own =
            sh("own", "head -c 9000000 /dev/zero > $STATE_DIRECTORY/data; exec sleep 1000");
        own.needs.disk = 4 << 20;
        let own = world.start(own);
        assert!(matches!(world.trouble().await, Report::Failed { id, .. } if id == own));
        assert!(world.pid(id).is_alive());
        world
    });
}

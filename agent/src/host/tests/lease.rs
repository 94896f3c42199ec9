//! Services of which only one replica may run.

use dugnad_resource::spec::Keep;
use smol::channel::{Sender, unbounded};

use super::*;
use crate::clock::boottime;

/// Who asked for the lease: with what fence, and where to send news.
type Asked = Rc<RefCell<Vec<(Option<u64>, Sender<LeaseNews>)>>>;

fn asking(asked: &Asked) -> AskLease {
    let asked = Rc::clone(asked);
    Rc::new(move |_, fence| {
        let (to, news) = unbounded();
        asked.borrow_mut().push((fence, to));
        Box::pin(news)
    })
}

fn single() -> Spec {
    let mut spec = sh("one", "echo $DUGNAD_FENCE > $STATE_DIRECTORY/fence; exec sleep 1000");
    spec.want = Want::Single;
    spec.state = Keep::OnNode;
    spec
}

fn held(asked: &Asked, fence: u64, for_: Duration) -> Sender<LeaseNews> {
    let to = asked.borrow().last().unwrap().1.clone();
    to.try_send(LeaseNews::Held { fence, until: boottime() + for_ }).unwrap();
    to
}

fn with_lease<F: Future<Output = World>>(test: impl FnOnce(World, Asked) -> F) {
    let tmp = tempfile::tempdir().unwrap();
    let ex = Rc::new(LocalExecutor::new());
    let work = async {
        let asked = Asked::default();
        let community = Rc::new(state::Community::default());
        let (host, reports) = open_with(&ex, tmp.path(), community, asking(&asked));
        let world = World { ex: Rc::clone(&ex), host, reports, dir: tmp.path().to_path_buf() };
        test(world, asked).await.host.stop_all().await;
    };
    let late = async {
        Timer::after(LIMIT).await;
        panic!("the test takes longer than {LIMIT:?}");
    };
    smol::block_on(ex.run(smol::future::or(work, late)));
}

impl World {
    async fn is_asked(&self, asked: &Asked, times: usize) {
        while asked.borrow().len() < times {
            Timer::after(Duration::from_millis(5)).await;
        }
    }
}

#[test]
fn it_runs_while_it_has_the_lease_and_no_longer() {
    with_lease(|world, asked| async move {
        let id = world.start(single());
        // Somebody else has it: it waits, and says so.
        let Report::Waits { reason, .. } = world.next().await else { panic!("it does not wait") };
        assert_eq!(reason, "waits for its lease: another may still run, or nobody can be asked");
        let news = held(&asked, 7, Duration::from_secs(60));
        world.ready(id).await;
        let fence = fs::read_to_string(world.folder("one.0/state/fence")).unwrap();
        assert_eq!(fence.trim(), "7");
        // It is another's.
        let process = world.pid(id);
        news.try_send(LeaseNews::Lost).unwrap();
        assert!(matches!(world.trouble().await, Report::Unready { .. }));
        assert!(!process.is_alive());
        // It asks again, and is not renewed: it ends in time by itself.
        world.is_asked(&asked, 2).await;
        let _news = held(&asked, 9, Duration::from_secs(2));
        world.ready(id).await;
        let process = world.pid(id);
        let Report::Unready { reason, .. } = world.trouble().await else { panic!("it runs on") };
        assert!(reason.starts_with("its lease ran out"), "{reason}");
        assert!(!process.is_alive());
        // Stopped, it gives the lease back, when nothing of it runs any more.
        world.is_asked(&asked, 3).await;
        let news = held(&asked, 11, Duration::from_secs(60));
        world.ready(id).await;
        world.stop(id, false).await;
        assert!(news.is_closed());
        world
    });
}

#[test]
fn without_its_agent_it_ends_in_time_too() {
    with_lease(|world, asked| async move {
        let id = world.start(single());
        world.is_asked(&asked, 1).await;
        let news = held(&asked, 7, Duration::from_secs(2));
        while world.next().await != (Report::Ready { id }) {}
        let process = world.pid(id);
        // The keeper hears of a renewal, and of no other.
        news.try_send(LeaseNews::Held { fence: 7, until: boottime() + Duration::from_secs(4) })
            .unwrap();
        while world.host.shared.lease(id).unwrap().1 < boottime() + Duration::from_secs(3) {
            Timer::after(Duration::from_millis(5)).await;
        }
        let until = world.host.shared.lease(id).unwrap().1;
        let World { ex, host, dir, .. } = world;
        drop(host);
        while process.is_alive() {
            assert!(boottime() < until + Duration::from_secs(3), "it runs on");
            Timer::after(Duration::from_millis(20)).await;
        }
        assert!(boottime() >= until, "it was killed too early");
        let (host, reports) = open(&ex, &dir);
        World { ex, host, reports, dir }
    });
}

#[test]
fn the_next_agent_takes_its_lease_up() {
    with_lease(|world, asked| async move {
        let id = world.start(single());
        world.is_asked(&asked, 1).await;
        let _news = held(&asked, 7, Duration::from_secs(60));
        while world.next().await != (Report::Ready { id }) {}
        let process = world.pid(id);
        let World { ex, host, dir, .. } = world;
        drop(host);
        let community = Rc::new(state::Community::default());
        let (host, reports) = open_with(&ex, &dir, community, asking(&asked));
        let world = World { ex, host, reports, dir };
        world.is_asked(&asked, 2).await;
        assert_eq!(asked.borrow()[1].0, Some(7));
        let news = held(&asked, 7, Duration::from_secs(60));
        while world.next().await != (Report::Ready { id }) {}
        assert!(process.is_alive());
        news.try_send(LeaseNews::Lost).unwrap();
        assert!(matches!(world.trouble().await, Report::Unready { .. }));
        assert!(!process.is_alive());
        world
    });
}

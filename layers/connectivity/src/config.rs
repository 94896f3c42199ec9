//! Every constant of the layer, with unit and source.

use dugnad_kernel::Duration;

/// Length of the successor list. 2 + log2(n) is needed (PROTOCOL.md 2.8); 12 serves 1,000 nodes.
pub const SUCCESSORS: usize = 12;
/// How many unsure ranges are remembered (PROTOCOL.md 2.2).
pub const UNSURE_MAX: usize = 8;
/// Lease on a lock (PROTOCOL.md 2.7).
pub const T_LOCK: Duration = Duration::from_secs(8);
/// How long a node that left still points the way (PROTOCOL.md 2.2). Not longer, because a
/// person waits for the agent to end; a node that comes later finds it dead and repairs.
pub const T_GRACE: Duration = Duration::from_secs(2);
/// A leave that takes longer ends as a crash would.
pub const LEAVE_LIMIT: Duration = Duration::from_secs(20);
/// How long a range gained without a hand-over counts as unsure.
pub const T_UNSURE: Duration = Duration::from_secs(10);
/// First wait after a refused join or leave; doubles, with jitter (PROTOCOL.md 2.10).
pub const BACKOFF: Duration = Duration::from_millis(100);
pub const BACKOFF_DOUBLINGS: u32 = 5;
/// Operations of joins given up lately that are still honoured if their point comes: at the slowest
/// back-off more than a minute of them, and no copy of a request lives as long.
pub const GIVEN_UP_MAX: usize = 32;
/// A join request not answered by then is tried another way.
pub const JOIN_ANSWER: Duration = Duration::from_secs(3);
/// Stabilisation after a change and while young (PROTOCOL.md 2.10).
pub const STABILIZE_FAST: Duration = Duration::from_secs(3);
/// Stabilisation of a quiet ring. Deaths of neighbours are seen by the detector, so this only
/// repairs what no event showed (PROTOCOL.md 2.10).
pub const STABILIZE_QUIET: Duration = Duration::from_secs(60);
/// How long after a change stabilisation stays fast.
pub const YOUNG: Duration = Duration::from_secs(60);
/// One try of a liveness query; three of them before a node counts as dead (PROTOCOL.md 2.11).
pub const QUERY: Duration = Duration::from_secs(2);
pub const QUERY_TRIES: u32 = 3;
/// How long the end of a life is remembered against the lists of those who do not know it yet.
pub const T_DEAD: Duration = Duration::from_secs(30);
pub const DEAD_MAX: usize = 32;
/// How long a claim to be my predecessor stands; whoever claims was alive when it did.
pub const CLAIM: Duration = Duration::from_secs(5);

/// Arity of the routing table (PROTOCOL.md 0.5).
pub const K_BITS: u32 = 2;
/// Stored slots (PROTOCOL.md 1.2).
pub const SLOTS: usize = 48;
/// One stored slot is looked up again this often, in turn.
pub const SLOT_REFRESH: Duration = Duration::from_secs(60);
/// Wait for a hop's acknowledgement (PROTOCOL.md 3.4).
pub const HOP_RTO: Duration = Duration::from_millis(800);
/// Other next hops tried when one does not acknowledge.
pub const HOP_ALTERNATIVES: usize = 3;
/// Hops after which a request is dropped (PROTOCOL.md 3.2): 2 log_k n and so many, at most these.
pub const HOPS_SPARE: u8 = 16;
pub const HOPS_MAX: u8 = 64;
/// One end-to-end attempt of a lookup, and how many there are (PROTOCOL.md 3.5).
pub const LOOKUP: Duration = Duration::from_secs(3);
pub const LOOKUP_ATTEMPTS: u8 = 4;
/// Requests waiting for an acknowledgement, and lookups under way (PROTOCOL.md 11.4).
pub const PENDING_MAX: usize = 256;

/// A neighbour on the ring not heard of for this long is pinged (PROTOCOL.md 2.10).
pub const HEARTBEAT: Duration = Duration::from_secs(6);
/// The same of a peer that is watched for a layer above: its own neighbours watch it, too, and
/// say [`GOSSIP`] others when it is gone, so this only serves where that does not reach.
pub const HEARTBEAT_FAR: Duration = Duration::from_secs(14);
/// Successors that are watched. Two, so that who loses one knows the next at once; a third costs
/// a third more frames, and a deeper loss is noticed when the nearer ones are replaced.
pub const SUCCESSORS_WATCHED: usize = 2;
/// Deadlines of watched peers that lie this close together share one wakeup.
pub const HEARTBEAT_SLACK: Duration = Duration::from_millis(500);
/// A peer that leaves a ping unanswered for this long is suspected and others are asked. With
/// the heartbeat before and the confirmation after it, silence is a death after 14 s or so.
pub const PING_ANSWER: Duration = Duration::from_secs(4);
/// From suspicion by silence to death.
pub const SILENCE_CONFIRM: Duration = Duration::from_millis(3_500);
/// From a closed connection to death, unless somebody reaches it (PROTOCOL.md 10.8).
pub const CLOSED_CONFIRM: Duration = Duration::from_millis(1_200);
/// Peers asked for an indirect probe (PROTOCOL.md 10.8).
pub const HELPERS: usize = 3;
/// Peers told of a death, so that they check at once and the ring closes everywhere.
pub const GOSSIP: usize = 16;
/// Watched at most.
pub const WATCHED_MAX: usize = 128;
/// Peers with a session that are remembered; the agent holds fewer.
pub const LINKED_MAX: usize = 512;

/// Sends of one node for one broadcast or bulk operation: home uplinks (PROTOCOL.md 4.1).
pub const FANOUT: usize = 8;
/// Ranges given away, and bulk operations that told something here, remembered for this long, so
/// that an operation under way while a range moves tells every id once (PROTOCOL.md 4.4).
pub const T_MOVED: Duration = Duration::from_secs(30);
pub const MOVED_MAX: usize = 8;
pub const SERVED_MAX: usize = 32;

/// Broadcasts remembered against duplicates, how long, and branches of their trees under way
/// (PROTOCOL.md 4.3, 11.4).
pub const SEEN_MAX: usize = 1_024;
pub const T_SEEN: Duration = Duration::from_secs(600);
pub const CASTS_MAX: usize = 64;
/// Bytes of what is broadcast (PROTOCOL.md 4.8); a frame holds 64 KiB with all around it.
pub const CAST_BYTES: usize = 16 * 1024;
/// Broadcasts of one source that pass here: a bucket of so many that fills again at so many a
/// second (PROTOCOL.md 4.9). So many, because a node that manages many services says several things
/// about each when a power cut ends or twenty of them are deployed at once.
pub const SOURCE_BURST: u32 = 256;
pub const SOURCE_RATE: u32 = 2;
/// Sources counted at once.
pub const SOURCES_MAX: usize = 256;

/// How long who asks everybody waits at most, if it does not say: a person waits for it. Each level
/// of the tree waits a little less.
pub const CAST_PATIENCE: Duration = Duration::from_millis(4_000);
pub const BULK_PATIENCE: Duration = Duration::from_secs(60);
pub const CAST_STEP: Duration = Duration::from_millis(250);
/// Children that did not answer are asked what they have so far this often (PROTOCOL.md 4.3), or
/// so many times while there is patience for it; after so many misses others get their part.
pub const T_ALIVE: Duration = Duration::from_secs(5);
pub const T_ALIVE_MIN: Duration = Duration::from_millis(500);
pub const ALIVE_SHARE: u32 = 5;
pub const ALIVE_MISSES: u8 = 3;
/// Nothing is delegated to a child that fell silent for this long, or until it is heard.
pub const T_SILENT: Duration = Duration::from_secs(30);
pub const SILENT_MAX: usize = 32;
/// Rounds in which who asked first looks for what nobody covered.
pub const GAP_ROUNDS: u8 = 3;
/// Children of one branch, repairs included, and peers a repair goes around.
pub const CHILDREN_MAX: usize = 64;
pub const AVOID_MAX: usize = 8;
/// Answers of branches that are over, kept for repairs: how long, how many, bytes in all.
pub const T_DONE: Duration = Duration::from_secs(60);
pub const DONE_MAX: usize = 64;
pub const DONE_BYTES: usize = 64 * 1024;
/// Bytes of collected answers one message carries.
pub const PARTS_BYTES: usize = 56 * 1024;

/// Dead peers remembered for the merge of rings (PROTOCOL.md 6.2).
pub const PASSIVE_MAX: usize = 64;
/// One of them is tried this often, while there are any.
pub const PASSIVE_PROBE: Duration = Duration::from_secs(20);
/// A peer the merge ran for is left alone this long (PROTOCOL.md 6.5).
pub const MERGE_REPEAT: Duration = Duration::from_secs(30);
/// Numbers of one life of a node: the next begins this many bits higher.
pub const LIFE_BITS: u32 = 20;
/// Base of the wait before a node that reaches nobody inside starts a ring.
pub const PATIENCE: Duration = Duration::from_millis(2_500);
/// Further wait for every linked peer with a lower id, so that one starts and the others join.
pub const PATIENCE_RANK: Duration = Duration::from_millis(1_500);

/// Groups one node can be in (PROTOCOL.md 11.4).
pub const GROUPS_MAX: usize = 16;
/// Members of the record's sample (PROTOCOL.md 4.5).
pub const GROUP_SAMPLE: usize = 16;
/// Fewer members of the sample known to live than this, and it is written anew at once.
pub const GROUP_SAMPLE_LOW: usize = 4;
/// A mesh of this many others becomes a ring, a ring of this many members a mesh (PROTOCOL.md 4.5:
/// above 32, back at 16).
pub const GROUP_MESH: usize = 32;
pub const GROUP_SHRINK: usize = 16;
/// A ring that seems to have less than twice as many is counted again after this.
pub const GROUP_RECOUNT: Duration = Duration::from_secs(600);
/// Others in a mesh that is about to become a ring; more wait until it is one.
pub const GROUP_MESH_MAX: usize = 64;
/// Members of a mesh each member has watched: one would do, but it may die together with its own.
pub const GROUP_WATCHED: usize = 2;
/// Bytes of one message (PROTOCOL.md 4.8).
pub const GROUP_BODY_MAX: usize = 16 * 1024;
/// Bytes that say what one member must be to take a message.
pub const GROUP_THAT_MAX: usize = 1024;
/// Messages remembered against duplicates, a group.
pub const GROUP_SEEN: usize = 1_024;
/// Messages of outsiders one member passes on, a second.
pub const GROUP_RATE: u32 = 50;
/// Members lost from a mesh that are remembered, how often one of them is greeted, and how many
/// times each: half an hour and more for the cut to heal.
pub const GROUP_LOST_MAX: usize = 32;
pub const GROUP_LOST: Duration = Duration::from_secs(60);
pub const GROUP_LOST_TRIES: u8 = 30;
/// So long after its members changed a mesh member compares its list with the next two.
pub const GROUP_COMPARE: Duration = Duration::from_secs(5);
/// The record is written this long after the members changed (PROTOCOL.md 4.8), sooner if hardly
/// anybody it names is there any more; and now and then, because it ends after a day.
pub const GROUP_REFRESH: Duration = Duration::from_secs(60);
pub const GROUP_URGENT: Duration = Duration::from_millis(500);
pub const GROUP_RENEW: Duration = Duration::from_secs(3_600);
/// How long the way into a ring, and a change of form, may take.
pub const GROUP_SETTLE: Duration = Duration::from_secs(30);
/// One member's answer, the directory's answer, and the pause after none.
pub const GROUP_CALL: Duration = Duration::from_secs(2);
pub const GROUP_DIRECTORY: Duration = Duration::from_secs(10);
pub const GROUP_PAUSE: Duration = Duration::from_millis(500);
pub const GROUP_TRIES: u32 = 20;
/// Operations under way, and questions that wait for one membership. Further ones are refused.
pub const GROUP_OPS_MAX: usize = 128;
pub const GROUP_ASKS: usize = 64;
/// Reliable messages (PROTOCOL.md 4.7): members keep so many, and so many bytes; that is also what
/// a sender may have under way.
pub const GROUP_KEPT: usize = 256;
pub const GROUP_KEPT_BYTES: usize = 1 << 20;
/// Senders a member follows in one group; the one silent longest is forgotten.
pub const GROUP_STREAMS: usize = 256;
/// Whether all have everything is asked after so many messages, or so long after one. Someone who
/// does not answer is given up after a minute; the detector is quicker.
pub const GROUP_CHECK_EVERY: u32 = 16;
pub const GROUP_CHECK: Duration = Duration::from_secs(2);
pub const GROUP_CHECK_TRIES: u32 = 30;
/// A gap is asked for after this, and up to as much more (PROTOCOL.md 4.8); then again.
pub const GROUP_NACK: Duration = Duration::from_millis(200);
pub const GROUP_NACK_JITTER: Duration = Duration::from_millis(300);
pub const GROUP_NACK_AGAIN: Duration = Duration::from_millis(500);
pub const GROUP_NACK_TRIES: u32 = 12;
/// Messages one answer to that has.
pub const GROUP_REPAIR: usize = 32;
/// Members a token of an anycast visits (PROTOCOL.md 4.6), how long it may take, how many of them
/// are sent, and how long who took one is reserved.
pub const GROUP_ANYCAST_VISITS: usize = 16;
pub const GROUP_TOKEN: Duration = Duration::from_secs(3);
pub const GROUP_ANYCAST_TRIES: usize = 4;
pub const GROUP_RESERVED: Duration = Duration::from_secs(10);

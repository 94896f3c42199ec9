use super::clock::Clock;
pub(super) fn hurry(clock: Clock) -> Clock {
    clock
}

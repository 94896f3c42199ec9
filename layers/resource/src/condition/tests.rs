#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use std::string::ToString;
use std::vec;

const SCHEMA: &[Attribute<'static>] = &[
    Attribute { name: "memory", kind: Kind::Bytes },
    Attribute { name: "cores", kind: Kind::Count },
    Attribute { name: "cpu", kind: Kind::Cpu },
    Attribute { name: "up", kind: Kind::Share },
    Attribute { name: "uptime", kind: Kind::Seconds },
    Attribute { name: "arch", kind: Kind::Text },
    Attribute { name: "zone", kind: Kind::Text },
    Attribute { name: "tags", kind: Kind::Words },
];

fn parse(typed: &str) -> Condition {
    Condition::parse(typed, SCHEMA).unwrap()
}

fn node(memory: i64, arch: &str, zone: Option<&str>, tags: &[&str]) -> Vec<(String, Value)> {
    let tags = tags.iter().map(ToString::to_string).collect();
    let mut all = vec![
        ("memory".into(), Value::Number(memory)),
        ("arch".into(), Value::Text(arch.into())),
        ("tags".into(), Value::Words(tags)),
    ];
    all.extend(zone.map(|zone| ("zone".into(), Value::Text(zone.into()))));
    all
}

#[test]
fn conditions_say_what_they_are_true_of() {
    let attic = node(300 << 20, "aarch64", Some("a"), &["solar", "ssd"]);
    for (typed, expected) in [
        ("", true),
        ("memory>=256M arch=aarch64 zone!=b tags~solar", true),
        ("memory>256M memory<0.5G", true),
        ("memory >= 1G", false),
        ("arch in x86_64,aarch64", true),
        ("arch prefix arm", false),
        ("arch prefix aarch", true),
        ("tags!~gpu", true),
        ("tags~solar tags!~ssd", false),
        ("zone exists", true),
        ("cores exists", false),
        ("cores !exists", true),
        ("cores>=1", false),
        ("cores!=4", false),
        ("zone = \"a\"", true),
    ] {
        assert_eq!(parse(typed).matches(attic.as_slice()), expected, "{typed}");
    }
    let nowhere = node(1, "armv6", None, &[]);
    assert!(!parse("zone!=a").matches(nowhere.as_slice()), "what is not said fails every test");
}

#[test]
fn units_are_those_of_the_files() {
    for (kind, text, expected) in [
        (Kind::Bytes, "1.5K", Some(1_536)),
        (Kind::Bytes, "2T", Some(2 << 40)),
        (Kind::Bytes, "7", Some(7)),
        (Kind::Bytes, "0.3", None),
        (Kind::Bytes, "-1", None),
        (Kind::Bytes, "99999999999999T", None),
        (Kind::Cpu, "50%", Some(500)),
        (Kind::Cpu, "2.5", Some(2_500)),
        (Kind::Share, "99.95%", Some(999_500)),
        (Kind::Share, "101%", None),
        (Kind::Share, "95", None),
        (Kind::Seconds, "2h", Some(7_200)),
        (Kind::Count, "3.0", Some(3)),
        (Kind::Count, "3.5", None),
        (Kind::Count, "", None),
    ] {
        assert_eq!(parse::number(kind, text), expected, "{kind:?} {text}");
    }
}

#[test]
fn a_mistake_is_shown_where_it_is() {
    let wrong = |typed: &str| Condition::parse(typed, SCHEMA).unwrap_err().to_string();
    assert_eq!(
        wrong("memory>=256M archh=arm"),
        "there is no attribute archh; \
         there are memory, cores, cpu, up, uptime, arch, zone, tags\n  \
         memory>=256M archh=arm\n               ^^^^^"
    );
    assert_eq!(
        wrong("memory>=lots"),
        "memory is a size such as 256M (units K, M, G, T of 1024), not \"lots\"\n  \
         memory>=lots\n          ^^^^"
    );
    for (typed, says, at) in [
        ("memory", "expected =", "  ^^^^^^"),
        ("zone=æ,b", "for several values", "         ^"),
        ("zone~a", "is a text", "      ^"),
        ("tags=a", "are words", "      ^"),
        ("memory prefix 1", "is a number", "         ^^^^^^"),
        ("zone=\"a", "second \"", "       ^^"),
        ("zone=", "expected a value", "       ^"),
        ("=3", "expected the name", "  ^"),
        ("memory>2G memory<1G", "never be true", "            ^^^^^^^^^"),
        ("zone=a zone=b", "never be true", "         ^^^^^^"),
        ("tags~a tags!~a", "never be true", "         ^^^^^^^"),
        ("zone exists zone !exists", "never be true", "              ^^^^^^^^^^^^"),
    ] {
        let told = wrong(typed);
        assert!(told.contains(says), "{typed}: {told}");
        assert_eq!(told.lines().last(), Some(at), "{typed}: {told}");
    }
    let long = "a".repeat(TYPED_MAX + 1);
    assert!(wrong(&long).contains("at most"));
}

/// Terms over a few small values, so that everything can be tried.
fn random_term(rng: &mut fastrand::Rng) -> String {
    let word = ["a", "ab", "b", "abc", "c"];
    let value = rng.u8(0..6);
    let pick = |rng: &mut fastrand::Rng| word[rng.usize(0..word.len())];
    match rng.u8(0..14) {
        0 => std::format!("cores={value}"),
        1 => std::format!("cores!={value}"),
        2 => std::format!("cores>={value}"),
        3 => std::format!("cores<={value}"),
        4 => std::format!("cores>{value}"),
        5 => std::format!("cores<{value}"),
        6 => std::format!("cores in {value},{},{}", rng.u8(0..6), rng.u8(0..6)),
        7 => std::format!("zone={}", pick(rng)),
        8 => std::format!("zone!={}", pick(rng)),
        9 => std::format!("zone prefix {}", pick(rng)),
        10 => std::format!("zone in {},{}", pick(rng), pick(rng)),
        11 => std::format!("tags~{}", pick(rng)),
        12 => std::format!("tags!~{}", pick(rng)),
        _ => {
            let name = ["cores", "zone", "tags"][rng.usize(0..3)];
            std::format!("{name} {}exists", if rng.bool() { "" } else { "!" })
        }
    }
}

/// Everything the terms can tell apart.
fn all_things() -> Vec<Vec<(String, Value)>> {
    let mut all = Vec::new();
    let words = ["a", "ab", "b", "abc", "c", "abx", "zzz"];
    for cores in -1..7_i64 {
        for zone in 0..=words.len() {
            for tags in 0..33_u8 {
                let mut thing = Vec::new();
                if cores >= 0 {
                    thing.push(("cores".into(), Value::Number(cores)));
                }
                if let Some(zone) = words.get(zone) {
                    thing.push(("zone".into(), Value::Text((*zone).into())));
                }
                if tags < 32 {
                    let has = |(at, word): (usize, &&str)| {
                        (tags >> at & 1 == 1).then(|| (*word).to_string())
                    };
                    let tags = words[..5].iter().enumerate().filter_map(has).collect();
                    thing.push(("tags".into(), Value::Words(tags)));
                }
                all.push(thing);
            }
        }
    }
    all
}

/// Each term of a condition by itself, without any normal form.
fn brute(terms: &[String], thing: &[(String, Value)]) -> bool {
    terms.iter().all(|term| parse(term).matches(thing))
}

#[test]
fn normal_form_and_covering_agree_with_brute_force() {
    let pairs: usize = std::env::var("PAIRS").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let mut rng = fastrand::Rng::with_seed(1);
    let things = all_things();
    let (mut never, mut covered, mut missed) = (0_u32, 0_u32, 0_u32);
    for round in 0..pairs {
        let terms = |rng: &mut fastrand::Rng| -> Vec<String> {
            (0..rng.usize(0..4)).map(|_| random_term(rng)).collect()
        };
        let (a, b) = (terms(&mut rng), terms(&mut rng));
        let parsed =
            (Condition::parse(&a.join(" "), SCHEMA), Condition::parse(&b.join(" "), SCHEMA));
        // A sample of all things, another one each round.
        let some = || things.iter().skip(round % 127).step_by(127);
        let (Ok(f), Ok(g)) = &parsed else {
            for (terms, parsed) in [(&a, &parsed.0), (&b, &parsed.1)] {
                assert!(parsed.is_ok() || !some().any(|thing| brute(terms, thing)), "{terms:?}");
            }
            never += 1;
            continue;
        };
        assert!(f.fits() && g.fits(), "{a:?} {b:?}");
        let mut all = true;
        for thing in some() {
            assert_eq!(f.matches(thing.as_slice()), brute(&a, thing), "{a:?} {thing:?}");
            all &= !g.matches(thing.as_slice()) || f.matches(thing.as_slice());
        }
        if f.covers(g) {
            covered += 1;
            assert!(all, "{a:?} does not cover {b:?}");
            // Whoever sends less for it must be right for everything.
            if covered % 16 == 0 {
                let wrong = |thing: &&Vec<(String, Value)>| {
                    g.matches(thing.as_slice()) && !f.matches(thing.as_slice())
                };
                assert_eq!(things.iter().find(wrong), None, "{a:?} {b:?}");
            }
        } else if covered % 64 == 0 {
            let all = things
                .iter()
                .all(|thing| !g.matches(thing.as_slice()) || f.matches(thing.as_slice()));
            missed += u32::from(all);
        }
        let again: Condition = postcard::from_bytes(&postcard::to_allocvec(f).unwrap()).unwrap();
        assert_eq!(&again, f);
    }
    assert!(never > 100 && covered > 1_000, "{never} {covered}");
    // In the small world of the test zone<> can be complete where it is not in general.
    assert!(missed < 60, "covering is found where it is: {missed} missed");
}

#[test]
fn what_is_not_in_normal_form_is_refused() {
    let number = |ranges: &[(i64, i64)]| Condition {
        tests: vec![("cores".into(), Test::Number(ranges.to_vec()))],
    };
    assert!(number(&[(1, 2), (4, 9)]).fits());
    for bad in [&[][..], &[(2, 1)], &[(4, 9), (1, 2)], &[(1, 2), (3, 4)], &[(1, i64::MAX), (0, 1)]]
    {
        assert!(!number(bad).fits(), "{bad:?}");
    }
    let words = |all: &[&str]| Condition {
        tests: vec![("zone".into(), Test::OneOf(all.iter().map(ToString::to_string).collect()))],
    };
    assert!(words(&["a", "b"]).fits());
    assert!(!words(&["b", "a"]).fits() && !words(&["a", "a"]).fits() && !words(&[]).fits());
    let double = Condition { tests: vec![("a".into(), Test::Exists), ("a".into(), Test::Exists)] };
    assert!(!double.fits());
    let shown = parse("tags~solar memory>=256M zone!=a arch in x86_64,armv6 cores in 1,2,7");
    assert_eq!(
        shown.to_string(),
        "arch in armv6,x86_64 cores in 1..2,7 memory>=268435456 tags~solar zone!=a"
    );
}

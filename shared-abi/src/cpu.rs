//! The CPU that a guest sees: a model, and features by name.
//!
//! Of `CPUID` a guest gets the bits of [`FEATURES`] and no others, whatever the host's KVM supports: what is new in a
//! CPU or in KVM reaches a guest when somebody has written it down here.
//!
//! | model | features |
//! |---|---|
//! | `host` | every one that the host has |
//! | `x86-64-v2`, `-v3`, `-v4` | those of this level of the x86-64 psABI, and a kernel's own that the host has |
//!
//! A kernel's own are [`Kind::Platform`] and [`Kind::Protection`]: what programs see is the same on every host.
//! Nested virtualization and the PMU are in no model: they are asked for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use Kind::{Baseline, Extra, Nested, Platform, Pmu, Protection, V2, V3, V4};
use Register::{Eax, Ebx, Ecx, Edx};
use State::{Avx, Avx512, None as Plain, Protected};

/// One of the four registers that `CPUID` fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// The first.
    Eax,
    /// The second.
    Ebx,
    /// The third.
    Ecx,
    /// The last.
    Edx,
}

/// One leaf of `CPUID`: its number, its subleaf, and the registers in the order of [`Register`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// EAX at the call.
    pub function: u32,
    /// ECX at the call.
    pub index: u32,
    /// The answer.
    pub registers: [u32; 4],
}

/// A model of a CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    /// The host's.
    #[default]
    Host,
    /// 2009: SSE4.2, POPCNT, CMPXCHG16B.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// 2013: AVX2, BMI2, FMA.
    #[serde(rename = "x86-64-v3")]
    V3,
    /// 2017: the parts of AVX-512 that all of its CPUs have.
    #[serde(rename = "x86-64-v4")]
    V4,
}

/// The CPU that a machine is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuSpec {
    /// What it has.
    pub model: CpuModel,
    /// What it has besides; a host that has not is refused.
    pub require: Vec<FeatureName>,
    /// What it has not.
    pub disable: Vec<FeatureName>,
    /// It can run virtual machines.
    pub nested: bool,
    /// It has performance counters.
    pub pmu: bool,
}

/// To whom a feature belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Every x86-64 CPU has it.
    Baseline,
    /// The second level, and those after it.
    V2,
    /// The third level, and the fourth.
    V3,
    /// The fourth level.
    V4,
    /// Interrupts, clocks and the like, which KVM makes itself.
    Platform,
    /// A kernel protects itself and its programs with it, or learns that it need not.
    Protection,
    /// No level has it.
    Extra,
    /// Nested virtualization.
    Nested,
    /// The PMU.
    Pmu,
}

/// The registers that a feature lives on, which the host must be able to save (XCR0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Those of every CPU.
    None,
    /// YMM.
    Avx,
    /// ZMM and the masks.
    Avx512,
    /// The rights of protection keys.
    Protected,
}

/// A bit of `CPUID` that a guest may have.
#[derive(Debug, PartialEq, Eq)]
pub struct Feature {
    /// As Linux has it in `/proc/cpuinfo`.
    pub name: &'static str,
    /// Whose it is.
    pub kind: Kind,
    /// What it lives on.
    pub state: State,
    /// The leaf.
    pub function: u32,
    /// The subleaf.
    pub index: u32,
    /// The register.
    pub register: Register,
    /// The bit, 0 to 31.
    pub bit: u8,
}

macro_rules! features {
    ($($function:literal $index:literal $register:ident { $($bit:literal $name:literal $kind:ident $state:ident,)* })*) => {
        &[$($(Feature {
            name: $name, kind: $kind, state: $state,
            function: $function, index: $index, register: $register, bit: $bit,
        },)*)*]
    };
}

/// Every feature that a guest may have.
///
/// Left out on purpose: what KVM fills in as it goes (OSXSAVE, OSPKE), what this machine says of itself (HTT,
/// topology), and what no KVM or no guest of this machine can use: MONITOR, SGX, MPX, Intel PT, resource control, AMX
/// (whose state must be asked for), shadow stacks, WAITPKG, ENQCMD, SEV.
pub const FEATURES: &[Feature] = features! {
    0x1 0 Edx {
        0 "fpu" Baseline Plain, 1 "vme" Platform Plain, 2 "de" Baseline Plain, 3 "pse" Baseline Plain,
        4 "tsc" Baseline Plain, 5 "msr" Baseline Plain, 6 "pae" Baseline Plain, 7 "mce" Baseline Plain,
        8 "cx8" Baseline Plain, 9 "apic" Baseline Plain, 11 "sep" Baseline Plain, 12 "mtrr" Baseline Plain,
        13 "pge" Baseline Plain, 14 "mca" Baseline Plain, 15 "cmov" Baseline Plain, 16 "pat" Baseline Plain,
        17 "pse36" Baseline Plain, 19 "clflush" Baseline Plain, 23 "mmx" Baseline Plain, 24 "fxsr" Baseline Plain,
        25 "sse" Baseline Plain, 26 "sse2" Baseline Plain, 27 "ss" Platform Plain,
    }
    0x1 0 Ecx {
        0 "pni" V2 Plain, 1 "pclmulqdq" Extra Plain, 5 "vmx" Nested Plain, 9 "ssse3" V2 Plain, 12 "fma" V3 Avx,
        13 "cx16" V2 Plain, 15 "pdcm" Pmu Plain, 17 "pcid" Platform Plain, 19 "sse4_1" V2 Plain,
        20 "sse4_2" V2 Plain, 21 "x2apic" Platform Plain, 22 "movbe" V3 Plain, 23 "popcnt" V2 Plain,
        24 "tsc_deadline_timer" Platform Plain, 25 "aes" Extra Plain, 26 "xsave" V3 Plain, 28 "avx" V3 Avx,
        29 "f16c" V3 Avx, 30 "rdrand" Extra Plain, 31 "hypervisor" Platform Plain,
    }
    0x6 0 Eax { 2 "arat" Platform Plain, }
    0x7 0 Ebx {
        0 "fsgsbase" Extra Plain, 1 "tsc_adjust" Platform Plain, 3 "bmi1" V3 Plain, 4 "hle" Extra Plain,
        5 "avx2" V3 Avx, 6 "fdp_excptn_only" Platform Plain, 7 "smep" Protection Plain, 8 "bmi2" V3 Plain,
        9 "erms" Extra Plain, 10 "invpcid" Platform Plain, 11 "rtm" Extra Plain,
        13 "zero_fcs_fds" Platform Plain, 16 "avx512f" V4 Avx512, 17 "avx512dq" V4 Avx512,
        18 "rdseed" Extra Plain, 19 "adx" Extra Plain, 20 "smap" Protection Plain, 21 "avx512ifma" Extra Avx512,
        23 "clflushopt" Extra Plain, 24 "clwb" Extra Plain, 26 "avx512pf" Extra Avx512,
        27 "avx512er" Extra Avx512, 28 "avx512cd" V4 Avx512, 29 "sha_ni" Extra Plain, 30 "avx512bw" V4 Avx512,
        31 "avx512vl" V4 Avx512,
    }
    0x7 0 Ecx {
        1 "avx512vbmi" Extra Avx512, 2 "umip" Protection Plain, 3 "pku" Extra Protected,
        6 "avx512_vbmi2" Extra Avx512, 8 "gfni" Extra Plain, 9 "vaes" Extra Avx, 10 "vpclmulqdq" Extra Avx,
        11 "avx512_vnni" Extra Avx512, 12 "avx512_bitalg" Extra Avx512, 14 "avx512_vpopcntdq" Extra Avx512,
        16 "la57" Extra Plain, 22 "rdpid" Extra Plain, 25 "cldemote" Extra Plain, 27 "movdiri" Extra Plain,
        28 "movdir64b" Extra Plain,
    }
    0x7 0 Edx {
        2 "avx512_4vnniw" Extra Avx512, 3 "avx512_4fmaps" Extra Avx512, 4 "fsrm" Extra Plain,
        8 "avx512_vp2intersect" Extra Avx512, 10 "md_clear" Protection Plain, 14 "serialize" Extra Plain,
        16 "tsxldtrk" Extra Plain, 23 "avx512_fp16" Extra Avx512, 26 "spec_ctrl" Protection Plain,
        27 "intel_stibp" Protection Plain, 28 "flush_l1d" Protection Plain,
        29 "arch_capabilities" Protection Plain, 31 "ssbd" Protection Plain,
    }
    0x7 1 Eax {
        0 "sha512" Extra Avx, 1 "sm3" Extra Avx, 2 "sm4" Extra Avx, 4 "avx_vnni" Extra Avx,
        5 "avx512_bf16" Extra Avx512, 7 "cmpccxadd" Extra Plain, 10 "fzrm" Extra Plain, 11 "fsrs" Extra Plain,
        12 "fsrc" Extra Plain, 23 "avx_ifma" Extra Avx,
    }
    0x7 1 Edx {
        4 "avx_vnni_int8" Extra Avx, 5 "avx_ne_convert" Extra Avx, 10 "avx_vnni_int16" Extra Avx,
        14 "prefetchi" Extra Plain,
    }
    0x7 2 Edx {
        0 "intel_psfd" Protection Plain, 1 "ipred_ctrl" Protection Plain, 2 "rrsba_ctrl" Protection Plain,
        3 "ddpd_u" Protection Plain, 4 "bhi_ctrl" Protection Plain, 5 "mcdt_no" Protection Plain,
    }
    0xd 1 Eax { 0 "xsaveopt" Extra Plain, 1 "xsavec" Extra Plain, 2 "xgetbv1" Extra Plain, 3 "xsaves" Extra Plain, }
    0x80000001 0 Edx {
        11 "syscall" Baseline Plain, 20 "nx" Baseline Plain, 22 "mmxext" Extra Plain, 25 "fxsr_opt" Extra Plain,
        26 "pdpe1gb" Extra Plain, 27 "rdtscp" Extra Plain, 29 "lm" Baseline Plain, 30 "3dnowext" Extra Plain,
        31 "3dnow" Extra Plain,
    }
    0x80000001 0 Ecx {
        0 "lahf_lm" V2 Plain, 2 "svm" Nested Plain, 4 "cr8_legacy" Platform Plain, 5 "abm" V3 Plain,
        6 "sse4a" Extra Plain, 7 "misalignsse" Extra Plain, 8 "3dnowprefetch" Extra Plain,
        9 "osvw" Protection Plain, 11 "xop" Extra Avx, 16 "fma4" Extra Avx, 21 "tbm" Extra Plain,
        22 "topoext" Platform Plain, 23 "perfctr_core" Pmu Plain,
    }
    0x80000007 0 Edx { 8 "nonstop_tsc" Platform Plain, }
    0x80000008 0 Ebx {
        0 "clzero" Extra Plain, 2 "xsaveerptr" Platform Plain, 9 "wbnoinvd" Extra Plain,
        12 "ibpb" Protection Plain, 14 "ibrs" Protection Plain, 15 "stibp" Protection Plain,
        17 "stibp_always_on" Protection Plain, 24 "amd_ssbd" Protection Plain, 25 "virt_ssbd" Protection Plain,
        26 "amd_ssb_no" Protection Plain, 28 "amd_psfd" Protection Plain, 29 "btc_no" Protection Plain,
        30 "ibpb_ret" Protection Plain,
    }
    0x80000021 0 Eax {
        0 "no_nested_data_bp" Platform Plain, 2 "lfence_rdtsc" Platform Plain,
        5 "verw_clear" Protection Plain, 6 "null_sel_clr_base" Platform Plain, 8 "autoibrs" Protection Plain,
        9 "no_smm_ctl_msr" Platform Plain, 27 "sbpb" Protection Plain, 28 "ibpb_brtype" Protection Plain,
        29 "srso_no" Protection Plain, 30 "srso_user_kernel_no" Protection Plain,
    }
    0x80000021 0 Ecx { 1 "tsa_sq_no" Protection Plain, 2 "tsa_l1_no" Protection Plain, }
};

/// The name of a feature that an operator may ask for or take away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FeatureName(&'static Feature);

/// Not a name of [`FEATURES`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    /// Nothing that a guest may have is called so.
    #[error(
        "{0:?} is no CPU feature that a guest may have: a name of /proc/cpuinfo such as \"aes\" would do"
    )]
    Unknown(String),
    /// It has a key of its own.
    #[error("{0:?} is switched by \"{1}\": true or false would do there")]
    Elsewhere(String, &'static str),
}

impl FromStr for FeatureName {
    type Err = FeatureError;
    fn from_str(text: &str) -> Result<Self, FeatureError> {
        let text = || text.chars().take(32).collect::<String>();
        match FEATURES.iter().find(|feature| feature.name == text()) {
            Some(Feature { kind: Nested, .. }) => Err(FeatureError::Elsewhere(text(), "nested")),
            Some(Feature { kind: Pmu, .. }) => Err(FeatureError::Elsewhere(text(), "pmu")),
            Some(feature) => Ok(Self(feature)),
            None => Err(FeatureError::Unknown(text())),
        }
    }
}

impl TryFrom<String> for FeatureName {
    type Error = FeatureError;
    fn try_from(text: String) -> Result<Self, FeatureError> {
        text.parse()
    }
}

impl From<FeatureName> for String {
    fn from(name: FeatureName) -> Self {
        name.0.name.into()
    }
}

impl fmt::Display for FeatureName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl CpuModel {
    /// As a config has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }

    fn wants(self, kind: Kind) -> Want {
        let level = match kind {
            Baseline => 1,
            V2 => 2,
            V3 => 3,
            V4 => 4,
            Platform | Protection => return Want::IfThere,
            Extra if self == Self::Host => return Want::IfThere,
            Extra | Nested | Pmu => return Want::No,
        };
        let own = match self {
            Self::Host => return Want::IfThere,
            Self::V2 => 2,
            Self::V3 => 3,
            Self::V4 => 4,
        };
        if level <= own { Want::Yes } else { Want::No }
    }
}

/// What a model has to do with a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    No,
    IfThere,
    Yes,
}

/// A CPU as a host can give it: what `KVM_GET_SUPPORTED_CPUID` says.
#[derive(Debug, Clone, Copy)]
pub struct HostCpu<'a>(pub &'a [Leaf]);

impl HostCpu<'_> {
    /// What a register of a leaf says; 0 of one that is not there.
    pub fn register(self, function: u32, index: u32, register: Register) -> u32 {
        let leaf = self.0.iter().find(|leaf| (leaf.function, leaf.index) == (function, index));
        leaf.map_or(0, |leaf| leaf.registers[register as usize])
    }

    /// The host has it, and can save what it lives on.
    fn has(self, feature: &Feature) -> bool {
        let bit = self.register(feature.function, feature.index, feature.register) >> feature.bit & 1 == 1;
        bit && feature.state.components() & !self.register(0xd, 0, Eax) == 0
    }

    /// Performance counters that KVM gives to guests.
    fn has_pmu(self) -> bool {
        let (intel, amd) = (self.register(0xa, 0, Eax) & 0xff, self.register(0x8000_0022, 0, Eax) & 1);
        let core = FEATURES.iter().any(|feature| feature.name == "perfctr_core" && self.has(feature));
        intel != 0 || amd != 0 || core
    }
}

impl State {
    /// Components of XCR0: x87 and SSE, AVX, AVX-512's three, PKRU.
    pub fn components(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Avx => 0b111,
            Self::Avx512 => 0b1110_0111,
            Self::Protected => 1 << 9 | 0b11,
        }
    }

    /// The feature that brings the registers: without it there is none that lives on them.
    fn owner(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Avx => Some("avx"),
            Self::Avx512 => Some("avx512f"),
            Self::Protected => Some("pku"),
        }
    }
}

impl CpuSpec {
    /// The config says nothing of it.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn lists(list: &[FeatureName], feature: &Feature) -> bool {
        list.iter().any(|name| name.0 == feature)
    }

    fn want(&self, feature: &Feature) -> Want {
        if Self::lists(&self.disable, feature) {
            Want::No
        } else if Self::lists(&self.require, feature) {
            Want::Yes
        } else {
            match feature.kind {
                // Of the two vendors' a host has one.
                Nested if self.nested => Want::IfThere,
                Pmu if self.pmu => Want::IfThere,
                kind => self.model.wants(kind),
            }
        }
    }

    /// Whether the guest has what brings the registers that a feature lives on.
    fn has_registers(&self, feature: &Feature, host: HostCpu<'_>) -> bool {
        let gives = |name: &str| {
            let owner = FEATURES.iter().find(|feature| feature.name == name);
            owner.is_some_and(|owner| self.want(owner) != Want::No && host.has(owner))
        };
        let Some(owner) = feature.state.owner() else { return true };
        let below = feature.state != Avx512 || gives("avx");
        gives("xsave") && below && gives(owner)
    }

    /// The guest has this feature.
    pub fn gives(&self, feature: &Feature, host: HostCpu<'_>) -> bool {
        self.want(feature) != Want::No && host.has(feature) && self.has_registers(feature, host)
    }

    /// What it asks for and this host cannot give, by name.
    pub fn missing(&self, host: HostCpu<'_>) -> Vec<&'static str> {
        let asked = FEATURES.iter().filter(|feature| self.want(feature) == Want::Yes);
        // What an operator has taken away takes along what lives on it, unless that is asked for expressly.
        let lost = |feature: &Feature| {
            !host.has(feature) || Self::lists(&self.require, feature) && !self.has_registers(feature, host)
        };
        let mut missing: Vec<_> = asked.filter(|feature| lost(feature)).map(|feature| feature.name).collect();
        let nested = FEATURES.iter().any(|feature| feature.kind == Nested && host.has(feature));
        if self.nested && !nested {
            missing.push("vmx or svm");
        }
        if self.pmu && !host.has_pmu() {
            missing.push("performance counters");
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A host with all features of these kinds, and the state of all of them.
    fn host(kinds: &[Kind]) -> Vec<Leaf> {
        let mut leaves: Vec<Leaf> = vec![Leaf { function: 0xd, index: 0, registers: [0x2e7, 0, 0, 0] }];
        for feature in FEATURES.iter().filter(|feature| kinds.contains(&feature.kind)) {
            let place = (feature.function, feature.index);
            let at = leaves.iter().position(|leaf| (leaf.function, leaf.index) == place);
            let at = at.unwrap_or_else(|| {
                leaves.push(Leaf { function: place.0, index: place.1, registers: [0; 4] });
                leaves.len() - 1
            });
            leaves[at].registers[feature.register as usize] |= 1 << feature.bit;
        }
        leaves
    }

    fn names(spec: &CpuSpec, host: &[Leaf]) -> BTreeSet<&'static str> {
        let given = FEATURES.iter().filter(|feature| spec.gives(feature, HostCpu(host)));
        given.map(|feature| feature.name).collect()
    }

    fn list(names: &[&str]) -> Vec<FeatureName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    const ALL: [Kind; 9] = [Baseline, V2, V3, V4, Platform, Protection, Extra, Nested, Pmu];

    #[test]
    fn no_bit_and_no_name_is_listed_twice() {
        let bits: BTreeSet<_> =
            FEATURES.iter().map(|f| (f.function, f.index, f.register as usize, f.bit)).collect();
        let names: BTreeSet<_> = FEATURES.iter().map(|feature| feature.name).collect();
        assert_eq!((bits.len(), names.len()), (FEATURES.len(), FEATURES.len()));
        assert!(FEATURES.iter().all(|feature| feature.bit < 32));
    }

    #[test]
    fn a_level_has_its_own_features_whatever_more_the_host_has() {
        let rich = host(&ALL);
        let spec = |model| CpuSpec { model, ..CpuSpec::default() };
        let v2 = names(&spec(CpuModel::V2), &rich);
        for (name, has) in
            [("sse4_2", true), ("avx", false), ("aes", false), ("smep", true), ("x2apic", true)]
        {
            assert_eq!(v2.contains(name), has, "{name}");
        }
        let v3 = names(&spec(CpuModel::V3), &rich);
        let v4 = names(&spec(CpuModel::V4), &rich);
        assert!(v3.is_superset(&v2) && v4.is_superset(&v3));
        assert!(v3.contains("avx2") && !v3.contains("avx512f") && v4.contains("avx512vl"));
        let host = names(&spec(CpuModel::Host), &rich);
        assert!(host.is_superset(&v4) && host.contains("aes"));
        for never in ["vmx", "svm", "pdcm", "perfctr_core"] {
            assert!(!host.contains(never), "{never}");
        }
    }

    #[test]
    fn what_a_host_lacks_is_named_and_a_host_model_lacks_nothing() {
        let old = host(&[Baseline, V2, Platform]);
        let spec = |model| CpuSpec { model, ..CpuSpec::default() };
        assert_eq!(spec(CpuModel::Host).missing(HostCpu(&old)), [""; 0]);
        assert_eq!(spec(CpuModel::V2).missing(HostCpu(&old)), [""; 0]);
        let missing = spec(CpuModel::V3).missing(HostCpu(&old));
        assert_eq!(missing.len(), 9, "{missing:?}");
        assert!(missing.contains(&"avx2") && missing.contains(&"abm"));
        let asks = CpuSpec { require: list(&["aes"]), nested: true, pmu: true, ..spec(CpuModel::Host) };
        assert_eq!(asks.missing(HostCpu(&old)), ["aes", "vmx or svm", "performance counters"]);
        let rich = host(&ALL);
        assert_eq!(asks.missing(HostCpu(&rich)), [""; 0]);
        assert!(names(&asks, &rich).contains("svm"));
    }

    #[test]
    fn what_is_taken_away_takes_along_what_lives_on_its_registers() {
        let rich = host(&ALL);
        let without = |names: &[&str]| CpuSpec { disable: list(names), ..CpuSpec::default() };
        let left = names(&without(&["avx"]), &rich);
        assert!(left.iter().all(|name| !name.starts_with("avx") && *name != "fma"), "{left:?}");
        assert!(!names(&without(&["xsave"]), &rich).contains("pku"));
        let no_512 = names(&without(&["avx512f"]), &rich);
        assert!(no_512.contains("avx2") && !no_512.contains("avx512_fp16"));
        // Asked for expressly it is a contradiction, which is named.
        let both = CpuSpec { require: list(&["avx2"]), ..without(&["avx"]) };
        assert_eq!(both.missing(HostCpu(&rich)), ["avx2"]);
        // So does a host that cannot save them.
        let mut narrow = host(&ALL);
        narrow[0].registers[0] = 0b111;
        assert!(!names(&CpuSpec::default(), &narrow).contains("avx512f"));
    }

    #[test]
    fn features_are_named_as_linux_does_and_those_with_a_key_of_their_own_are_sent_there() {
        assert_eq!("aes".parse::<FeatureName>().unwrap().to_string(), "aes");
        assert!("avx9".parse::<FeatureName>().unwrap_err().to_string().contains("\"avx9\""));
        let vmx = "vmx".parse::<FeatureName>().unwrap_err().to_string();
        assert!(vmx.contains("\"nested\""), "{vmx}");
        let spec = CpuSpec { require: list(&["aes"]), ..CpuSpec::default() };
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<CpuSpec>(&json).unwrap(), spec);
        assert!(serde_json::from_str::<CpuSpec>(&json.replace("aes", "avx9")).is_err());
    }
}

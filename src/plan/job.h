// job.toml: what to train. Every field has a default, its unit and its reason.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/config.h"
#include "model/config.h"

namespace pelago::plan {

struct DataConfig {
  std::string dir;                // a folder that `pelago data build` made
  int64_t sequence_length = 256;  // tokens a sample
};

struct TrainConfig {
  int64_t steps = 0;             // optimizer steps of each site; 0: as many as fit into `minutes`
  double minutes = 3;            // wall time of training that the plan aims for when steps is 0
  int64_t batch_sequences = 32;  // sequences a step, all sites together; the planner may move it by
                                 // a tenth to fit the chips
  bool exact_batch = false;      // the planner keeps batch_sequences: runs then compare
  int64_t microbatch_sequences = 8;  // most sequences a device takes at once; more are accumulated
  bool exact_microbatch = false;     // the planner takes just so many, where fewer would fill a
                                     // pipeline better: plans then compare with runs of others
  double lr = 3e-3;                  // peak; small models take large rates
  double min_lr_ratio = 0.1;         // the schedule ends at lr times this
  int64_t warmup_steps = 20;
  std::string schedule =
      "cosine";  // or "wsd": warm-up, stable, decay over the last wsd_decay_ratio
  double wsd_decay_ratio = 0.2;
  // Of the matrices of blocks: "adamw", or "muon" (Jordan et al. 2024), whose steps the merges of
  // distant sites average better (arXiv:2505.23725). All else takes AdamW. Muon steps by whole
  // matrices, so neither slice_optimizer nor tensor_parallel may cut them.
  std::string optimizer = "adamw";
  double weight_decay = 0.1;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double clip_norm = 1.0;      // of the whole gradient over all ranks; 0: none
  std::string dtype = "auto";  // "auto": the chip's training dtype; "f32"; "bf16"
  // How a site cuts the model. The planner knows each chip's memory and pace, so "auto" is best
  // unless one wants to compare.
  std::string pipeline = "auto";   // "never": each device (or tensor-parallel set) holds the whole
                                   // model; "always": none does, where a site has several
  std::string recompute = "auto";  // where memory demands it; "always"; "never"
  std::string slice_optimizer = "auto";  // ZeRO-1: where it lets a faster plan fit; ...
  int64_t tensor_parallel = 0;  // devices that a block is cut over; 0: the planner's choice
  int64_t stages = 0;           // of every pipeline; 0: the planner's choice
  std::vector<int64_t> blocks_by_stage =
      {};                        // of every pipeline, {11, 13}; empty: the planner's choice
  double memory_reserve = 0.03;  // share of each chip's memory that plans leave alone: what the
                                 // memory model may be wrong by, and allocators lose between blocks
  int64_t seed = 1;
  int64_t eval_every_steps = 50;  // 0: only at start and end
  int64_t eval_sequences = 64;    // of the held-out split, 0: all
  int64_t checkpoint_every_steps = 50;
  int64_t keep_checkpoints = 3;
  int64_t snapshot_every_steps = 8;  // at least, to the host's memory: what a lost device costs to
                                     // repeat; 0: none, a lost device goes back to a checkpoint
  int64_t audit_every_steps = 200;   // one microbatch, by another chip again; 0: never
  bool known_answer = true;          // ask chips what they must know when they join and are idle
  bool spare_workers = true;         // of each device one that has loaded its libraries, and waits
  bool has_muon() const { return optimizer == "muon"; }
  double learning_rate(int64_t step, int64_t num_steps) const;  // step: 0 for the first
};

/// How the sites agree on one set of weights. docs/FILES.md says which values make which published
/// method.
struct SitesConfig {
  // What the fields below start from; each may still be set. "streaming": P fragments, staggered,
  // overlapped (arXiv:2501.18512). "thin": the same in 1/16 of the bytes. "diloco": all at once,
  // waited for (arXiv:2311.08105). "sync": weights averaged after every step and waited for.
  std::string method = "streaming";
  int64_t inner_steps =
      24;  // H: steps after which every fragment was exchanged once (arXiv:2501.18512)
  int64_t fragments = 4;      // P
  int64_t overlap_steps = 1;  // tau: steps between snapshot and merge; the line works meanwhile; 0:
                              // the chips wait
  int delta_bits = 4;  // 32; 8 or 4, by block; 2: thin, the largest 1 in 37 (arXiv:2508.15706)
  double merge_alpha = 0.5;  // share of the local weights that the merge keeps
  double outer_lr = 0.4;     // Nesterov (arXiv:2501.18512)
  double outer_momentum = 0.9;
  std::string combine = "mean";  // of deltas; "direction": their mean direction at their mean
                                 // length (RDA, arXiv:2604.21428); "trimmed", "median_of_means":
                                 // from 4 sites on, one bad delta cannot pull them far
  // How one model is trained over several sites. "rounds": each site holds the model, deltas are
  // exchanged. "pipeline": stages of one pipeline lie in different sites and go in step, which
  // needs a fat line. "auto": rounds, unless a site cannot hold the model or a pipeline is faster
  // by a fifth.
  std::string across = "auto";
  int activation_bits = 16;  // of hidden states and their gradients between sites: 32 (as they
                             // are), 16 (bf16 where they are f32) or 8 (by block)
  double error_decay = 1;  // of what quantising left over, this much goes out next time; thin lines
                           // may let old error fade (0.95 in arXiv:2508.15706)
  double grace_s = 10;     // how long an exchange waits for a late site before it goes on without
  // Rounds in a row in which other shares of the batch would have gained a twentieth of a step,
  // before the sites take them: a checkpoint or a neighbour's build lasts a round or two. 0: the
  // plan's shares for good.
  int64_t share_rounds = 3;
  // A site that faults have put so many seconds, and at least two steps, behind the others leaves
  // steps out until it is where they are: else all would wait for it at merges. A second is what
  // `overlap_steps` hides with ease, and more than a checkpoint costs. 0: it never does.
  double behind_s = 1;
  double heartbeat_s = 1;  // a site silent for five of these is taken for dead
};

/// What a plan is to be good at, and what it may not use. A plan takes as many of the fleet's chips
/// as serve its objective and leaves the others free.
struct AimConfig {
  std::string objective = "tokens/s";  // of all sites; "tokens/joule" by the chips' power;
                                       // "tokens/price" by fleet.toml's price_hour
  double max_watts = 0;                // of all chips at work; 0: no limit
  double deadline_hours = 0;           // by when train.steps are to be done; 0: whenever
  std::vector<std::string> keep_free =
      {};  // {"a100=2"}: so many chips of a kind stay unused at least
  bool is_plain() const {
    return objective == "tokens/s" && max_watts == 0 && deadline_hours == 0 && keep_free.empty();
  }
};

/// What becomes of checkpoints besides lying on the site's disk.
struct CheckpointConfig {
  std::string copy_to;  // "s3://BUCKET/PREFIX": the newest train.keep_checkpoints lie there, too,
                        // for the day on which the disk is gone; empty: nowhere
};

/// A mixture of experts in place of each block's feed-forward, as the planner counts it; the fields
/// are those of Qwen 3 MoE's config.json. The trainer has dense blocks only.
struct ExpertsConfig {
  int64_t num_experts = 0;          // 0: dense
  int64_t num_experts_per_tok = 0;  // of these, those that a token goes through
  int64_t moe_intermediate_size = 0;
  bool is_dense() const { return num_experts == 0; }
};

/// Bytes on the line of so many values of a delta, at 2 (thin), 4, 8 or 32 bits.
double delta_bytes(double values, int bits);

struct JobConfig {
  std::string name = "run";  // the run folder is runs/NAME
  std::string runs_dir = "runs";
  model::ModelConfig model;  // vocab_size comes from the dataset
  std::string model_preset = "10m";
  DataConfig data;
  TrainConfig train;
  SitesConfig sites;
  CheckpointConfig checkpoint;
  ExpertsConfig experts;
  AimConfig aim;
  std::string source_toml;  // the text after --set, as it is copied into the run folder
};

/// Parameters of the job's model, its experts included.
int64_t num_parameters(const JobConfig& job);

/// Reads and validates job.toml. [model]: preset = "10m" or config = "path/config.json", plus any
/// field of ModelConfig. Throws Failure (exit 2) naming file, key, value and remedy. vocab_size is
/// set later, by the data.
JobConfig read_job(const std::filesystem::path& path, const std::vector<std::string>& overrides);

}  // namespace pelago::plan

// Conversations and settings, kept in this browser and nowhere else: one entry of localStorage a
// conversation, so that two tabs do not write over each other's. Where the browser keeps nothing
// (private windows, full) the page works and says so.

import { keep, recall } from '../shared/theme';
import { kDefaults, type Sampling } from './api';

export interface Stats {
  tokens: number;
  seconds: number; // from the first token to the last
  first_s: number; // until the first token
  prompt_tokens: number | null;
  cached_tokens: number | null;
  finish: string;
}

export interface Answer {
  text: string;
  state: 'streaming' | 'done' | 'stopped' | 'failed';
  error: string;
  status: number; // of HTTP, with an error
  stats: Stats | null;
}

export type Message = { id: string; role: 'user'; text: string } | { id: string; role: 'assistant'; answers: Answer[]; shown: number };

export interface Conversation {
  id: string;
  title: string;
  updated: number; // unix ms
  kind: 'chat' | 'text';
  system: string;
  messages: Message[];
  text: string; // of kind "text"
}

const kPrefix = 'pelago.chat.';
const kSettings = 'pelago.settings';
const kKey = 'pelago.key';

export function newId(): string {
  // randomUUID exists only on pages that came over TLS or from this machine.
  return Date.now().toString(36) + Math.random().toString(36).slice(2, 10);
}

export function newConversation(kind: 'chat' | 'text', system = ''): Conversation {
  return { id: newId(), title: '', updated: Date.now(), kind, system, messages: [], text: '' };
}

function isConversation(value: unknown): value is Conversation {
  const each = value as Conversation;
  return typeof each?.id === 'string' && typeof each.title === 'string' && Array.isArray(each.messages) && typeof each.updated === 'number';
}

function readAll(): Conversation[] {
  const list: Conversation[] = [];
  try {
    for (let i = 0; i < localStorage.length; ++i) {
      const key = localStorage.key(i);
      if (!key?.startsWith(kPrefix)) continue;
      try {
        const conversation = JSON.parse(localStorage.getItem(key) ?? '');
        if (isConversation(conversation)) list.push(settled(conversation));
      } catch {
        // An entry that cannot be read is left where it is.
      }
    }
  } catch {
    // No storage at all.
  }
  return list.sort((a, b) => b.updated - a.updated);
}

/** An answer that was streaming when the page was closed will not go on. */
function settled(conversation: Conversation): Conversation {
  for (const message of conversation.messages) {
    if (message.role !== 'assistant') continue;
    for (const answer of message.answers) if (answer.state === 'streaming') answer.state = 'stopped';
  }
  return { ...conversation, kind: conversation.kind ?? 'chat', system: conversation.system ?? '', text: conversation.text ?? '' };
}

export interface Settings extends Sampling {
  model: string;
  system: string; // of new conversations
}

function readSettings(): Settings {
  const defaults = { ...kDefaults, model: '', system: '' };
  try {
    return { ...defaults, ...JSON.parse(recall(kSettings) ?? '{}') };
  } catch {
    return defaults;
  }
}

class Store {
  conversations = $state<Conversation[]>(readAll());
  settings = $state<Settings>(readSettings());
  is_kept = $state(true);
  key = $state('');

  constructor() {
    try {
      this.key = sessionStorage.getItem(kKey) ?? '';
    } catch {
      // Asked for again.
    }
  }

  save(conversation: Conversation) {
    if (conversation.messages.length === 0 && conversation.text === '') return;
    this.is_kept = keep(kPrefix + conversation.id, JSON.stringify(conversation));
  }

  add(conversation: Conversation): Conversation {
    this.conversations.unshift(conversation);
    return this.conversations[0];
  }

  remove(id: string) {
    this.conversations = this.conversations.filter((each) => each.id !== id);
    try {
      localStorage.removeItem(kPrefix + id);
    } catch {
      // It was never kept.
    }
  }

  saveSettings() {
    keep(kSettings, JSON.stringify(this.settings));
  }

  /** For this tab alone: a key is a secret, and is gone when the tab is. */
  saveKey(key: string) {
    this.key = key.trim();
    try {
      sessionStorage.setItem(kKey, this.key);
    } catch {
      // Kept in memory.
    }
  }
}

export const store = new Store();

export function titleOf(text: string): string {
  const line = text.trim().split('\n')[0] ?? '';
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}…` : line;
}

/** The conversation as a text file of its own. */
export function asMarkdown(conversation: Conversation): string {
  if (conversation.kind === 'text') return conversation.text;
  const parts = conversation.system ? [`**System**\n\n${conversation.system}`] : [];
  for (const message of conversation.messages) {
    parts.push(message.role === 'user' ? `**You**\n\n${message.text}` : `**Model**\n\n${message.answers[message.shown]?.text ?? ''}`);
  }
  return `# ${conversation.title || 'Conversation'}\n\n${parts.join('\n\n')}\n`;
}
